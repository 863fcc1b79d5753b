"""Operations on the files of a run that moves, where they are: on this machine, or in a pod that mounts them.

Usage in a pod: python -m ropewalk.jobs.runs.move.place ROOT, with a line of JSON on the standard input: {"do": operation, "run",
and the operation's arguments}. `receive` reads a stream of files after it, and `send` answers with one (see `file_stream`); the
others answer with a line of JSON.
"""

import glob
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from ropewalk.cluster.backends.recovery import has_agents
from ropewalk.cluster.errors import BackendError, RopewalkError
from ropewalk.cluster.run import moves
from ropewalk.cluster.run.code_copy import accept_copy, unpack_code
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.file_stream import END, StreamWriter, send_open_file
from ropewalk.cluster.run.files import locked, make_private
from ropewalk.cluster.run.names import ARRIVING_FOLDER, RECORD
from ropewalk.jobs.runs.move.contents import Content, content_at, contents_of, open_content
from ropewalk.k8s.api.exec_stdin import ready_stdin

PART = ".part"


class Place:
    """A runs' root, and one run there."""

    def __init__(self, root: Path, run: str) -> None:
        self.root, self.run = root, RunDir(root / run)
        self._arriving = root / ARRIVING_FOLDER / run

    # --- where the run was

    def leave(self, to: str, code: Mapping[str, Any]) -> dict[str, Any]:
        """Lock out all attempts here, and return the number of the attempt that does, the contents, and changes of the record.

        `code`: keys of the record that will change.
        """
        attempt = moves.leave(self.run, to)
        contents = [content.plain() for content in contents_of(self.run, code)]
        return {"attempt": attempt, "contents": contents, "changes": self.run.changes}

    def send(self, wanted: Sequence[Mapping[str, Any]], out: IO[bytes]) -> None:
        """Write contents to a stream, each from an offset on: {path, size, digest, offset}."""
        for each in wanted:
            with open_content(self.root, each["path"]) as source:
                header = {"path": each["digest"], "offset": each["offset"], "size": each["size"] - each["offset"]}
                send_open_file(out, source, header)
        out.write(END)
        out.flush()

    # --- where it goes

    def missing(self, attempt: int, contents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the contents that are to be sent, each with the offset of what has arrived of it.

        `arrived`: the run has attempts after `attempt` here, so nothing may be written any more; `started`: one has or may have
        started.
        """
        if self.run.path.is_dir() and (self.run.attempts() or [0])[-1] > attempt:
            return {"arrived": True, "started": has_agents(self.run) or self.run.last_outcome() is None, "wanted": []}
        wanted: dict[str, dict[str, Any]] = {}
        for content in (Content(**each) for each in contents):
            if not self._has(content) and not (self._arriving / content.digest).exists():
                part = self._arriving / f"{content.digest}{PART}"
                offset = part.stat().st_size if part.exists() else 0
                wanted[content.digest] = {**content.plain(), "offset": min(offset, content.size)}
        return {"arrived": False, "started": False, "wanted": [*wanted.values()]}

    def receive(self, stream: IO[bytes]) -> dict[str, Any]:
        """Write what arrives; it stays if the stream is cut. Raises BackendError for a content that changed on the way."""
        self._arriving.mkdir(parents=True, exist_ok=True)
        writer = _Arrivals(self._arriving)
        with locked(self._arriving / ".lock"):
            try:
                while chunk := stream.read1(1 << 20):  # type: ignore[attr-defined]
                    writer.write(chunk)
            finally:
                complete = writer.complete
                writer.begin()
        return {"complete": complete}

    def put(self, contents: Sequence[Mapping[str, Any]], changes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Put all contents in their places, run.yaml last; what a crash left undone is done by a repetition."""
        self._arriving.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            make_private(self.run.path)
        wanted = [Content(**each) for each in contents]
        last = {content.digest: content for content in wanted}
        for content in sorted(wanted, key=lambda content: content.path == f"{self.run.id}/{RECORD}"):
            self._put(content, keep=last[content.digest] is not content)
        self.run.write_changes(changes)
        shutil.rmtree(self._arriving)
        return {}

    def _put(self, content: Content, *, keep: bool) -> None:
        arrived, target = self._arriving / content.digest, self.root / content.path
        if not arrived.exists():
            if not self._has(content):
                raise BackendError(f"{content.path}: has not arrived; give the command again")
        elif content.is_code:
            with arrived.open("rb") as archive:
                unpack_code(archive, target)
        else:
            if not target.resolve().is_relative_to(self.root.resolve()):
                raise BackendError(f"{content.path}: not a path inside the runs' root")
            target.parent.mkdir(parents=True, exist_ok=True)
            if keep:
                shutil.copyfile(arrived, temporary := arrived.with_suffix(".copy"))
                temporary.replace(target)
            else:
                arrived.replace(target)

    def _has(self, content: Content) -> bool:
        path = self.root / content.path
        if content.is_code:
            return accept_copy(path)
        with suppress(OSError):
            return path.stat().st_size == content.size and content_at(self.root, content.path).digest == content.digest
        return False


class _Arrivals(StreamWriter):
    """Writes contents to files named by their digests, and checks them."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def open_file(self, header: Mapping[str, Any]) -> IO[bytes]:
        path = self._folder / f"{Path(header['path']).name}{PART}"
        path.touch()
        os.truncate(path, min(header["offset"], path.stat().st_size))
        return path.open("ab")

    def finish_file(self, header: Mapping[str, Any]) -> None:
        digest = Path(header["path"]).name
        part = self._folder / f"{digest}{PART}"
        with part.open("rb") as stream:
            os.fsync(stream.fileno())
            actual = hashlib.file_digest(stream, "sha256").hexdigest()
        if actual != digest:
            part.unlink()
            raise BackendError("a file changed while it was sent; give the command again")
        part.replace(self._folder / digest)


def fingerprints(paths: Sequence[str]) -> dict[str, str | None]:
    """Return a hash of each input: of a data set's manifest, else of names, sizes and small files' contents; None: missing."""
    return {path: _fingerprint(path) for path in paths}


SMALL_BYTES = 64 << 20


def _fingerprint(pattern: str) -> str | None:
    matches = sorted(Path(match) for match in glob.glob(pattern, recursive=True)) or [Path(pattern)] * os.path.exists(pattern)
    if not matches:
        return None
    digest = hashlib.sha256()
    for match in matches:
        files = [match / "manifest.json"] if (match / "manifest.json").is_file() else sorted(match.rglob("*"))
        for path in [match] if match.is_file() else files:
            if path.is_file():
                size = path.stat().st_size
                name = path.relative_to(match) if match.is_dir() else path.name
                digest.update(f"{name}\0{size}\0".encode())
                digest.update(path.read_bytes() if size <= SMALL_BYTES else b"")
    return digest.hexdigest()


def serve(root: Path, request: Mapping[str, Any], stdin: IO[bytes], stdout: IO[bytes]) -> None:
    """Do the operation of a request, and answer. Raises RopewalkError."""
    files, operation = Place(root, request["run"]), request["do"]
    arguments = {name: value for name, value in request.items() if name not in ("do", "run")}
    if operation == "send":
        files.send(**arguments, out=stdout)
        return
    operations: dict[str, Callable[..., dict[str, Any]]]
    operations = {"leave": files.leave, "missing": files.missing, "put": files.put, "fingerprints": fingerprints}
    answer = files.receive(stdin) if operation == "receive" else operations[operation](**arguments)
    stdout.write(json.dumps(answer).encode() + b"\n")
    stdout.flush()


def main() -> None:
    """Serve one request in a pod."""
    with ready_stdin() as stream:
        try:
            serve(Path(sys.argv[1]), json.loads(stream.readline()), stream, sys.stdout.buffer)
        except RopewalkError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()

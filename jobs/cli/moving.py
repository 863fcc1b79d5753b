"""A move as the machine sees it from which the user gives the command: steps on two clusters, and a copy between them."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ropewalk.cluster.errors import EXIT_USER_MISTAKE, BackendError, ConfigError, RopewalkError
from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.run.moves import MOVED_FROM, departed_to
from ropewalk.jobs.cli.known_runs import cluster_of, forget, remember, state_dir
from ropewalk.jobs.cli.progress import show_progress
from ropewalk.jobs.cli.ssh.command import reached_through_ssh
from ropewalk.jobs.runs.show.status import find_run

CHUNK_BYTES = 1 << 16


@dataclass
class Move:
    """A run that moves from one cluster to another."""

    run: str
    source: str
    target: str

    @classmethod
    def of(cls, ref: str, target: str) -> "Move":
        """Find the run. Raises ConfigError."""
        run, source = ref, cluster_of(ref)
        if source is None:
            here = find_run(ref)
            run, source = here.id, str(here.record.get("cluster", "local"))
            if departed_to(here) == source:  # its files have arrived, under the root that they have left; it has not started
                source = str(here.record[MOVED_FROM])
        return cls(run, source, target)

    def execute(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Move the run, or go on with a move that was interrupted. Raises RopewalkError."""
        described = self._ask(self.source, "describe", to=self.target)
        self.run = described["run"]
        if self.source == self.target:
            return self._stay(described, overrides)
        checked = self._ask(self.target, "check", described=described, overrides=list(overrides))
        _say(f"{self.run} saves on {self.source}, and stops")
        self._ask(self.source, "stop", to=self.target)
        left = self._ask(self.source, "leave", to=self.target, code=described["code"])
        contents = left["contents"]
        copied = Counter(self.run)
        missing = self._ask(self.target, "missing", attempt=left["attempt"], contents=contents)
        if missing["wanted"]:
            self._copy(missing["wanted"], copied)
        _say(f"starting {self.run} on {self.target}")
        arrived = self._ask(self.target, "arrive", left=left, checked=checked, code=described["code"], source=self.source)
        checkpoint = sum(each["size"] for each in contents if each["path"].startswith(f"{self.run}/checkpoints/"))
        return self._result(arrived, copied.end(), checkpoint)

    def _stay(self, described: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
        """Let a run go on where it is that was to move, and has not started there. Raises RopewalkError."""
        elsewhere, attempt = described["departed_to"], described["attempt"]
        if not elsewhere:
            raise ConfigError(f"{self.run} is on {self.target} already; --on names the cluster to move to")
        if self._ask(elsewhere, "missing", attempt=attempt, contents=[])["started"]:
            raise ConfigError(
                f"{self.run} has started on {elsewhere}; `ropewalk move {self.run} --on {elsewhere}` finds it there"
            )
        _say(f"{self.run} has not started on {elsewhere}: it goes on on {self.source}")
        self.source = elsewhere
        return self._result(self._ask(self.target, "stay", overrides=list(overrides)), 0, 0)

    def _result(self, started: Mapping[str, Any], copied_bytes: int, checkpoint_bytes: int) -> dict[str, Any]:
        """Note where the run is now, and return the command's answer."""
        if reached_through_ssh(self.target) is not None:
            remember(self.run, self.target)
        else:
            forget(self.run)
        return {
            "run": self.run,
            "source": self.source,
            "cluster": self.target,
            "attempt": started["attempt"],
            "directory": started["directory"],
            "bytes": copied_bytes,
            "checkpoint_bytes": checkpoint_bytes,
        }

    def _ask(self, cluster: str, step: str, **request: Any) -> dict[str, Any]:
        """Take a step on a cluster, and return its answer. Raises ConfigError, BackendError."""
        with Step(self.run, cluster, step, request) as process:
            return dict(json.loads(process.end()))

    def _copy(self, wanted: Sequence[Mapping[str, Any]], copied: "Counter") -> None:
        """Pass on the missing contents from one cluster to the other. Raises BackendError."""
        with (
            Step(self.run, self.source, "send", {"wanted": list(wanted)}) as sender,
            Step(self.run, self.target, "receive", {}, streams_in=True) as receiver,
        ):
            total, sent = sum(each["size"] - each["offset"] for each in wanted), 0
            while chunk := sender.read():
                copied.add(len(chunk))
                receiver.write(chunk)
                sent += len(chunk)
                show_progress(f"copy {self.run}", min(sent, total - 1), total)  # frames come on top of the contents
            show_progress(f"copy {self.run}", total, total)
            answer = json.loads(receiver.end())
            sender.end()
        if not answer["complete"]:
            raise BackendError(f"the copy of {self.run} was interrupted; give the command again: it goes on where it was")


class Step:
    """A process that takes a step on a cluster: here, on its login node, or in a pod."""

    def __init__(self, run: str, cluster: str, step: str, request: Mapping[str, Any], *, streams_in: bool = False) -> None:
        """Start it. `streams_in`: more than the request is written to it."""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        command = module_command("ropewalk.jobs.cli", "cluster-step", step, run, "--on", cluster)
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._errors, bufsize=0)
        self.write(json.dumps(request).encode() + b"\n")
        if not streams_in and self._process.stdin is not None:  # a pod's program answers once it has all its input
            self._process.stdin.close()

    def __enter__(self) -> "Step":
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait()
        self._errors.close()

    def write(self, data: bytes) -> None:
        """Give it input. Raises the error with which it has ended."""
        assert self._process.stdin is not None
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._process.stdin.write(rest) :]
        except BrokenPipeError:
            self._process.wait()
            raise self._failure() from None

    def read(self) -> bytes:
        """Return the next part of its output; empty at the end."""
        assert self._process.stdout is not None
        return self._process.stdout.read(CHUNK_BYTES) or b""

    def end(self) -> bytes:
        """End its input, and return the rest of its output. Raises ConfigError, BackendError."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        output = bytearray()
        while chunk := self.read():
            output += chunk
        if self._process.wait():
            raise self._failure()
        self._errors.seek(0)
        sys.stderr.write(self._errors.read().decode(errors="replace"))
        return bytes(output)

    def _failure(self) -> RopewalkError:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines() or ["it ended without a message"]
        kind = ConfigError if self._process.returncode == EXIT_USER_MISTAKE else BackendError
        return kind(lines[-1].removeprefix("error: "))


class Counter:
    """Number of bytes that a move has copied, also by commands that were killed; in the user's folder of state."""

    def __init__(self, run: str) -> None:
        self._path = state_dir() / "moves" / run
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.touch()
        self.total = int(self._path.read_text() or 0)

    def add(self, size: int) -> None:
        """Count bytes."""
        self.total += size
        with self._path.open("r+") as stream:  # in place: whoever is killed leaves the number
            stream.write(f"{self.total:020}")

    def end(self) -> int:
        """Forget the number, and return it."""
        self._path.unlink()
        return self.total


def _say(message: str) -> None:
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()

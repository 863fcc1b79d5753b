"""Archives of environments: one file under the runs' root, named by its content, unpacked once to each node's disk."""

import fcntl
import gzip
import hashlib
import os
import secrets
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, cast

import zstandard

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.process.scratch import OWNER, outside
from ropewalk.cluster.run.files import locked

FOLDER = ".packages"  # beside the runs
ENDINGS = (".tar.zst", ".tar.gz", ".tgz", ".tar")
LEVEL, THREADS = 3, -1  # of zstd; -1: as many threads as cores
CHUNK_BYTES = 1 << 20
STREAM_BYTES = 1 << 17  # fits in a core's cache: decompressed bytes are read from there by tar


def pack(folder: Path, store: Path) -> str:
    """Pack a folder, and return the archive's name in the store."""

    def write(target: IO[bytes]) -> None:
        compressor = zstandard.ZstdCompressor(level=LEVEL, threads=THREADS)
        with compressor.stream_writer(target, closefd=False) as stream, tarfile.open(fileobj=stream, mode="w|") as tar:
            for path in sorted(folder.iterdir()):
                tar.add(path, path.name)

    return _store(write, store, ".tar.zst")


def adopt(archive: Path, store: Path) -> str:
    """Copy an archive that the user has packed, and return its name in the store. Raises ConfigError."""
    ending = next((ending for ending in ENDINGS if archive.name.endswith(ending)), None)
    if ending is None:
        raise ConfigError(f"packages.path: {archive} is neither a folder nor one of {', '.join(f'*{each}' for each in ENDINGS)}")
    with archive.open("rb") as source:
        return _store(lambda target: shutil.copyfileobj(source, target, CHUNK_BYTES), store, ending)


def _store(write: Callable[[IO[bytes]], object], store: Path, ending: str) -> str:
    """Write a file under the digest of its content."""
    store.mkdir(parents=True, exist_ok=True)
    temporary = store / f".{secrets.token_hex(8)}"
    try:
        with temporary.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        with temporary.open("rb") as stream:
            name = f"{hashlib.file_digest(stream, 'sha256').hexdigest()[:40]}{ending}"
        if not (store / name).exists():
            temporary.replace(store / name)
        return name
    finally:
        temporary.unlink(missing_ok=True)


def unpack(archive: Path, disk: Path, finish: Callable[[Path], None]) -> Path:
    """Unpack an archive on this node, once for all runs of the user, and return the folder. Raises ConfigError.

    `finish` adapts the environment to its folder. A folder counts as soon as the file `NAME.ready` is beside it.
    """
    target = disk / archive.name.partition(".")[0]
    ready = disk / f"{target.name}.ready"
    disk.mkdir(parents=True, exist_ok=True)
    with locked(disk / f"{target.name}.lock") as lock:
        if not ready.exists():
            try:
                shutil.rmtree(target, ignore_errors=True)  # of a process that was killed
                target.mkdir()
                _extract(archive, target, lock)
                finish(target)
                ready.touch()
            except (OSError, tarfile.TarError, zstandard.ZstdError, zlib.error, EOFError) as error:
                shutil.rmtree(target, ignore_errors=True)
                raise ConfigError(f"{archive.name}: cannot be unpacked to {disk}: {error}; is the disk full?") from error
    return target


def _extract(archive: Path, folder: Path, lock: int) -> None:
    with archive.open("rb") as source, _decompressed(source, archive.name) as stream:
        if shutil.which("tar"):  # takes half as much time as Python
            _run_tar(stream, folder, lock)
        else:
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                tar.extractall(folder, filter="tar")


def _decompressed(source: IO[bytes], name: str) -> IO[bytes]:
    if name.endswith(".zst"):
        return zstandard.ZstdDecompressor().stream_reader(source, read_size=CHUNK_BYTES)
    return source if name.endswith(".tar") else cast("IO[bytes]", gzip.GzipFile(fileobj=source))


def _run_tar(stream: IO[bytes], folder: Path, lock: int) -> None:
    """Extract by the system's tar, which holds the lock too: it may outlive this process for a moment. Raises OSError."""
    command = ["tar", "-x", "-o", "-f", "-", "-C", str(folder)]
    environment = {**os.environ, "TAR_OPTIONS": "-b128"}  # GNU tar then reads 64 KiB at a time, not 10; others ignore it
    with tempfile.TemporaryFile() as errors:
        with (
            subprocess.Popen(command, stdin=subprocess.PIPE, stderr=errors, pass_fds=[lock], env=environment) as tar,
            suppress(BrokenPipeError),
        ):
            assert tar.stdin is not None
            with suppress(OSError):  # the kernel may allow a user no larger pipe
                fcntl.fcntl(tar.stdin, fcntl.F_SETPIPE_SZ, CHUNK_BYTES)  # with 64 KiB, tar and Python wait for each other
            shutil.copyfileobj(stream, tar.stdin, STREAM_BYTES)
        if tar.returncode:
            errors.seek(0)
            raise OSError(" ".join(errors.read().decode(errors="replace").split())[-500:] or f"tar ended with {tar.returncode}")


def node_disk() -> Path:
    """Return this user's folder for environments on the node's disk."""
    temporary = Path(tempfile.gettempdir())
    scratch = next((path for path in (temporary, *temporary.parents) if (path / OWNER).is_file()), temporary)  # of a run
    folder = outside(scratch) / f"ropewalk-packages-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022 or folder.is_symlink():
        raise ConfigError(f"{folder} belongs to, or can be written by, another user; remove it, or set TMPDIR")
    return folder

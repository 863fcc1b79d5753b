"""Import of torch from an environment on a shared file system, and from one that was unpacked to the node's disk.

The shared file system is tests/fakes/nfs_client.py, whose metadata calls take 5 ms (option --latency); reads of data take no
longer than on the disk below. Calls are those that reach the server. Every import is from a new mount, which has nothing cached.
The time of the unpacked environment includes the unpacking. The node's disk is a new ext4 file system with a journal, in memory:
on the disk of a virtual machine, the writes of the preparation delay those of the unpacking; and ext4 without a journal inspects
every inode that was deleted in the last minutes before it makes a file, which has taken 10 s of CPU after tests. The environment
has the interpreter of this machine and copies of torch and what it needs. Needs root, FUSE and loop devices. `--module json
--packages ""` checks the program itself.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ropewalk.cluster.packages.archive import FOLDER, pack
from ropewalk.cluster.packages.build import PYTHON, copy_own

CLIENT = Path(__file__).parents[1] / "fakes/nfs_client.py"
METADATA = ("getattr", "readdir", "readlink", "open")
UNPACK = """
import pathlib, sys
from ropewalk.cluster.packages.archive import unpack
print(unpack(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), lambda folder: None))
"""


def needed(name: str, names: set[str] | None = None) -> set[str]:
    """Return the distributions that one needs, among those that are installed."""
    names = set() if names is None else names
    if name not in names:
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            return names
        names.add(name)
        for requirement in requirements:
            if "extra ==" not in requirement:
                needed(re.split(r"[^\w.-]", requirement)[0], names)
    return names


def make_environment(folder: Path, packages: list[str]) -> None:
    """Copy the interpreter and these packages, with their compiled code."""
    copy_own(Path(sys.base_prefix), folder / PYTHON)
    site = next((folder / PYTHON / "lib").glob("python3*")) / "site-packages"
    for package in sorted(set().union(*map(needed, packages))):
        for file in importlib.metadata.files(package) or []:
            source, target = Path(str(file.locate())), site / file
            if ".." not in file.parts and source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
    subprocess.run([python_of(folder), "-m", "compileall", "-q", str(folder)], check=False, stdout=subprocess.DEVNULL)


def python_of(folder: Path) -> str:
    return str(next((folder / PYTHON / "bin").glob("python3*")))


class Mount:
    """A new client of the shared file system; `calls` has its calls after the block."""

    def __init__(self, backing: Path, folder: Path, latency: float) -> None:
        self.path, self._count = folder / "shared", folder / "calls.json"
        self.path.mkdir(exist_ok=True)
        options = [f"--latency={latency}", "--free-data", f"--calls={self._count}"]
        self._command = [sys.executable, str(CLIENT), str(backing), str(self.path), *options]

    def __enter__(self) -> "Mount":
        self._process = subprocess.Popen(self._command)
        while not os.path.ismount(self.path):
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["fusermount3", "-u", str(self.path)], check=True)
        self._process.wait()
        self.calls: dict[str, int] = json.loads(self._count.read_text())

    @property
    def metadata_calls(self) -> int:
        return sum(self.calls.get(name, 0) for name in METADATA)


@contextlib.contextmanager
def node_disk() -> Iterator[Path]:
    """Mount a new ext4 file system in memory, and remove it after the block."""
    with tempfile.TemporaryDirectory(prefix="packages-", dir="/dev/shm") as name:
        image, disk = Path(name) / "image", Path(name) / "disk"
        with image.open("wb") as stream:
            stream.truncate(4 << 30)
        disk.mkdir()
        subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0", str(image)], check=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(disk)], check=True)
        try:
            yield disk
        finally:
            subprocess.run(["umount", str(disk)], check=True)


def timed(*command: str) -> tuple[float, float, str]:
    """Run a command, and return its seconds, its seconds of CPU, and its output."""
    began, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    output = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    )
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    return time.monotonic() - began, cpu, output.stdout


def main() -> None:
    """Measure both, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, default=5.0, help="milliseconds a metadata call")
    parser.add_argument("--module", default="torch")
    parser.add_argument("--packages", default="torch,numpy", help="distributions to copy, with what they need")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="packages-") as name, node_disk() as disk:
        folder = Path(name)
        backing = folder / "backing"
        make_environment(backing / "env", list(filter(None, options.packages.split(","))))
        archive = pack(backing / "env", backing / FOLDER)
        os.sync()
        program = ("-I", "-c", f"import {options.module}")
        with Mount(backing, folder, options.latency) as shared:
            shared_seconds, shared_cpu, _ = timed(python_of(shared.path / "env"), *program)
        with Mount(backing, folder, options.latency) as once:
            unpack_seconds, unpack_cpu, output = timed(sys.executable, "-c", UNPACK, str(once.path / FOLDER / archive), str(disk))
            import_seconds, import_cpu, _ = timed(python_of(Path(output.strip())), *program)
        size = (backing / FOLDER / archive).stat().st_size / 2**20
    total = unpack_seconds + import_seconds
    print(f"archive {size:,.0f} MiB; {options.latency:g} ms a metadata call; import {options.module}")
    print(f"shared    {shared.metadata_calls:6,} metadata calls  {shared_seconds:6.1f} s, CPU {shared_cpu:.1f} s")
    cpu = f"CPU {unpack_cpu:.1f} + {import_cpu:.1f} s"
    print(f"unpacked  {once.metadata_calls:6,} metadata calls  {total:6.1f} s (unpacking {unpack_seconds:.1f} s), {cpu}")
    print(f"ratio     {shared.metadata_calls / once.metadata_calls:6.0f}                 {shared_seconds / total:6.1f}")


if __name__ == "__main__":
    main()

"""Machines that share a file system with NFS's habits: each has a client of its own (see `nfs_client.py`)."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ropewalk.slurm.lab.cluster import Lab
from ropewalk.slurm.lab.processes import lab_processes
from tests.patience import Patience, until

ROOT = Path(__file__).resolve().parents[2]


def need_nfs() -> None:
    """Skip, with the remedy, where no such file system can be mounted."""
    missing = [
        what
        for what, there in {
            "root": os.geteuid() == 0,
            "/dev/fuse": os.access("/dev/fuse", os.R_OK | os.W_OK),
            "fusermount3 (apt-get install fuse3 libfuse3-4)": shutil.which("fusermount3"),
            "mfusepy (pip install mfusepy)": importlib.util.find_spec("mfusepy"),
        }.items()
        if not there
    ]
    if missing:
        pytest.skip(f"needs {', '.join(missing)} to mount a file system with NFS's habits")


class Client:
    """One machine's view of the shared files; its caches are a minute old where NFS's may be."""

    def __init__(self, backing: Path, path: Path, latency_milliseconds: float = 0.0, seconds: float = 60.0) -> None:
        self.path = path
        path.mkdir(parents=True)
        arguments = [
            str(backing),
            str(path),
            f"--attributes={seconds}",
            f"--listings={seconds}",
            f"--latency={latency_milliseconds}",
        ]
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("nfs_client.py")), *arguments],
            stdout=subprocess.DEVNULL,
            cwd=path.parent,
        )
        until(lambda: os.path.ismount(path), Patience.START)

    @contextmanager
    def away(self, most_seconds: float) -> Iterator[None]:
        """The server is away: whoever asks it waits until the block ends, at the latest `most_seconds`."""
        self._process.send_signal(signal.SIGSTOP)
        back = threading.Timer(most_seconds, self._go_on)
        back.start()
        try:
            yield
            assert back.is_alive(), f"something waited for the file server: it had to come back after {most_seconds} s"
        finally:
            back.cancel()
            self._go_on()

    def _go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Unmount."""
        self._go_on()
        subprocess.run(["fusermount3", "-u", "-z", str(self.path)], check=False)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._process.kill()
        self._process.wait()


class Network:
    """A file server and its clients."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clients = folder, list[Client]()
        self.backing = folder / "backing"
        self.backing.mkdir(parents=True)

    def client(self, latency_milliseconds: float = 0.0) -> Path:
        """Mount the shared files for one more machine and return the path."""
        name = f"machine-{len(self.clients)}"
        self.clients.append(Client(self.backing, self.folder / name, latency_milliseconds))
        return self.clients[-1].path

    def close(self) -> None:
        """Unmount all."""
        for client in self.clients:
            client.close()


def python_on(host: str, code: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Run Python code as a machine of that name would."""
    script = 'hostname "$0"; exec "$@"'
    return subprocess.Popen(
        ["unshare", "--uts", "bash", "-c", script, host, sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


class SlurmNetwork:
    """A Slurm cluster whose nodes see the shared files at the same path as the submitter, each through a client of its own."""

    def __init__(self, make_lab: Callable[..., Lab], network: Network, num_nodes: int, latency_milliseconds: float = 0.0) -> None:
        # before the nodes, whose namespaces do not see what is mounted later
        self.path, *clients = [network.client(latency_milliseconds) for _ in range(1 + num_nodes)]
        self.lab = make_lab(nodes=num_nodes)
        self._clients = dict(zip(self.lab.nodes, clients, strict=True))
        for name in self.lab.nodes:
            self._connect(name)

    def _connect(self, name: str) -> None:
        """Put the node's own client where the submitter has its."""
        ours = os.readlink("/proc/self/ns/mnt")
        for process in lab_processes(self.lab.folder, name):
            with suppress(OSError):
                if os.readlink(f"/proc/{process.pid}/ns/mnt") != ours:
                    arguments = [
                        "nsenter",
                        "-t",
                        str(process.pid),
                        "-m",
                        "mount",
                        "--bind",
                        str(self._clients[name]),
                        str(self.path),
                    ]
                    subprocess.run(arguments, check=True)
                    return
        raise AssertionError(f"{name} has no namespace of its own")

    def start_node(self, name: str) -> None:
        """Power-on: with the caches of before, as if only its processes had died."""
        self.lab.start_node(name)
        self._connect(name)

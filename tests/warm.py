"""Runs of this machine start from a process that has imported torch already, as the trials of a sweep do.

Without it every agent of every test's run imports torch by itself, which was most of what the suite computed. Tests that ask for
the fixture `cold` start runs as a user's are started; those on Slurm and Kubernetes always do.

Usage: python -m tests.warm SOCKET
"""

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ropewalk.cluster.process.fork_server import serve
from ropewalk.cluster.process.forking import import_modules
from ropewalk.cluster.spec import Engine
from ropewalk.jobs.registry import JOBS

# What the jobs that train import before their ranks are forked, what pyarrow and transformers import as they are used, and what
# transformers computes once a process.
TRAINING = [
    *sorted({module for spec in JOBS.values() if spec.engine is Engine.RANKS for module in spec.preload}),
    *("pandas", "tests.computed_once", "tests.fakes.toy"),
]
POLL_SECONDS = 0.5
ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def warm_server() -> Iterator[str]:
    """Yield the address of a fork server that imports `TRAINING` at its first request."""
    with tempfile.TemporaryDirectory(prefix="w") as folder:
        address = str(Path(folder) / "s")
        with socket.socket(socket.AF_UNIX) as listener:  # it listens before anybody knows its address
            listener.bind(address)
            listener.listen(64)
            command = [sys.executable, "-m", "tests.warm", str(listener.fileno())]
            server = subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=ROOT, pass_fds=[listener.fileno()], process_group=0)
        try:
            yield address
        finally:
            server.kill()
            server.wait()


def main() -> None:
    """Import the modules when the first request waits; then serve."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    parent = os.getppid()
    with socket.socket(fileno=int(sys.argv[1])) as listener:
        while not select.select([listener], [], [], POLL_SECONDS)[0]:
            if os.getppid() != parent:
                return
        import_modules(TRAINING)
        serve(listener)


if __name__ == "__main__":
    main()

"""Runs of this machine start from a process that has imported torch already, as the trials of a sweep do.

Without it every agent of every test's run imports torch by itself, which was most of what the suite computed. Tests that ask for
the fixture `cold` start runs as a user's are started; those on Slurm and Kubernetes always do.
"""

import importlib
import os
import select
import signal
import socket
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

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


@contextmanager
def warm_server() -> Iterator[str]:
    """Fork a server from this process, which has computed nothing yet; yield its address.

    It imports `TRAINING`, of which this process has imported the most, at its first request.
    """
    with tempfile.TemporaryDirectory(prefix="w") as folder:
        address = str(Path(folder) / "s")
        with socket.socket(socket.AF_UNIX) as listener:  # it listens before anybody knows its address
            listener.bind(address)
            listener.listen(64)
            server = os.fork()
            if server == 0:
                _serve(listener)
        try:
            yield address
        finally:
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)


def _serve(listener: socket.socket) -> NoReturn:
    """Import the modules when the first request waits; then serve."""
    try:
        os.setpgrp()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        parent = os.getppid()
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        os.closerange(3, listener.fileno())
        os.closerange(listener.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
        importlib.import_module("tests.frozen")
        while not select.select([listener], [], [], POLL_SECONDS)[0]:
            if os.getppid() != parent:
                os._exit(0)
        import_modules(TRAINING)
        serve(listener)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)

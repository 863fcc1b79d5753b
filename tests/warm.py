"""Runs of this machine start from a process that has imported torch already, as the trials of a sweep do.

Without it every agent of every test's run imports torch by itself, which was most of what the suite computed. Tests that ask for
the fixture `cold` start runs as a user's are started; those on Slurm and Kubernetes always do.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cluster.process.fork_server import FORK_SERVER_VARIABLE, start_fork_server
from cluster.spec import Engine
from jobs.registry import JOBS

# What the jobs that train import before their ranks are forked, what pyarrow and transformers import as they are used, and what
# transformers computes once a process.
TRAINING = [
    *sorted({module for spec in JOBS.values() if spec.engine is Engine.RANKS for module in spec.preload}),
    *("pandas", "tests.computed_once"),
]


@contextmanager
def warm(modules: Sequence[str]) -> Iterator[None]:
    """Let runs of the local backend be forked from a process that has imported `modules`."""
    with tempfile.TemporaryDirectory(prefix="w") as folder:
        address = Path(folder) / "s"
        server = start_fork_server(address, modules, Path(folder) / "log")
        os.environ[FORK_SERVER_VARIABLE] = str(address)
        try:
            yield
        finally:
            del os.environ[FORK_SERVER_VARIABLE]
            server.kill()
            server.wait()

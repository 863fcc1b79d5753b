"""The server that processes of tests are forked from: one in a pytest process."""

import multiprocessing
from types import SimpleNamespace
from typing import Any

from tests.warm import TRAINING

MIRRORS = ("ropewalk.jobs.runs.mirror.relay", "ropewalk.jobs.runs.mirror.following", "tests.jobs.runs.mirror.processes")
PRELOAD = [*TRAINING, "tests.jobs.launch", *MIRRORS, "pytest", "tests.frozen"]


def _process(**arguments: Any) -> Any:
    """Make a process; its server imports `PRELOAD`.

    Pools of `preprocess` that ran in this process have stopped the server and have set other imports. Without this every rank of
    all later tests would import torch and transformers by itself.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context.Process(**arguments)


SERVER = SimpleNamespace(Process=_process)

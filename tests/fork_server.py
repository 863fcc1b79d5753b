"""The server that processes of tests are forked from: one in a pytest process."""

import multiprocessing.forkserver
import os
import tempfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ropewalk.cluster.process.forking import forked_interpreters
from tests.warm import TRAINING

MIRRORS = ("ropewalk.jobs.runs.mirror.relay", "ropewalk.jobs.runs.mirror.following", "tests.jobs.runs.mirror.processes")
PRELOAD = [*TRAINING, "tests.jobs.launch", *MIRRORS, "pytest", "tests.frozen"]


def fork_server() -> None:
    """Fork the server from this process, which has imported all that tests do and has computed nothing yet."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
    with forked_interpreters():
        multiprocessing.forkserver.ensure_running()


def end_fork_server() -> None:
    """End the server: the next one has the environment of now."""
    multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]


def _process(target: Callable[..., object], args: tuple[Any, ...] = (), **more: Any) -> Any:
    """Make a process; its server imports `PRELOAD`.

    Pools of `preprocess` that ran in this process have stopped the server and have set other imports. Without this every rank of
    all later tests would import torch and transformers by itself.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context.Process(target=_begin, args=(os.environ.get("TMPDIR"), target, args), **more)


def _begin(folder: str | None, target: Callable[..., object], args: tuple[Any, ...]) -> None:
    """Use the temporary directory of the test, which the server may not know."""
    if folder is not None:
        os.environ["TMPDIR"] = folder
    tempfile.tempdir = None
    target(*args)


SERVER = SimpleNamespace(Process=_process)

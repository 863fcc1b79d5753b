"""Pytest plug-in: distribution of the tests over workers (pytest-xdist, `pytest -n 3`), and the end of workers."""

import gc
import importlib
import os
import signal
import sys
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

# The tests of a lab run on one worker, one after the other, and share its cluster; others share the wheel that they install. They
# start first: they take longest.
LABS = {
    "tests/k8s/": "kubernetes",
    "tests/benchmarks/": "kubernetes",
    "tests/slurm/ssh/": "ssh",
    "tests/slurm/": "slurm",
    "tests/jobs/inference/engines/": "engines",
    "tests/test_package.py": "wheel",
    "tests/test_colliding_names.py": "wheel",
}
# then modules of minutes, so that short ones are left when the first worker has nothing more to do
LONG = ("tests/test_", "tests/chaos/", "tests/sharding/", "tests/cluster/", "tests/datapipe/")
LONG += ("tests/jobs/training/", "tests/jobs/serving/", "tests/jobs/orchestration/")
LAST = "tests/datapipe/test_process_pool.py"  # it stops the server from which a worker forks ranks
TEARDOWN_SECONDS = 60.0
TESTS = Path(__file__).parent


class LabScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Send the tests of a lab, and those of a module, to one worker. (xdist's marks have no effect under pytest 9.2.)"""

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return next((lab for folder, lab in LABS.items() if module.startswith(folder)), module)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LabScheduling:
    config.option.loadscopereorder = False  # else the groups with the most tests start first
    return LabScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(not mark.args for mark in item.iter_markers("soak")):
            raise pytest.UsageError(f"{item.nodeid}: say why it is left to make soak: @pytest.mark.soak('reason')")
    items.sort(key=lambda item: place(item.nodeid))


def place(nodeid: str) -> int:
    """The place of a test among the groups that start one after the other."""
    groups = (*LABS, *LONG)
    return 100 if nodeid.startswith(LAST) else next((at for at, path in enumerate(groups) if nodeid.startswith(path)), 99)


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        os.setpgrp()  # Ctrl-C reaches the controller alone, which interrupts each worker once


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Let pytest cache the modules whose asserts it has rewritten, which takes as long as the rest of collection.

    Every worker collects all modules. On a fresh checkout each first imports a share of its own, and finds the others' cached.
    """
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, False
    gc.disable()  # all that is made here stays: garbage would be looked for in vain
    worker = getattr(session.config, "workerinput", None)
    if worker and session.config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        modules = sorted(path.relative_to(TESTS.parent) for path in TESTS.rglob("test_*.py"))
        for module in modules[int(worker["workerid"].removeprefix("gw")) :: worker["workercount"]]:
            with suppress(Exception, pytest.skip.Exception):  # collection reports it
                importlib.import_module(".".join(module.with_suffix("").parts))
    try:
        return (yield)
    finally:
        sys.dont_write_bytecode = before
        gc.enable()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtestloop() -> Generator[None, object, object]:
    """Fork the server of the ranks once all is imported, and before pytest watches logs and warnings."""
    if server := sys.modules.get("tests.fork_server"):
        server.fork_server()
    return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Let interrupted workers take their labs down; xdist alone would end them within seconds."""
    distribution = session.config.pluginmanager.getplugin("dsession")
    if distribution is None or exitstatus != pytest.ExitCode.INTERRUPTED:
        return
    workers = [gateway for gateway in distribution.nodemanager.group if not gateway.node.channel.isclosed()]
    for gateway in workers:
        gateway._io.popen.send_signal(signal.SIGINT)
    for gateway in workers:
        with suppress(gateway.node.channel.TimeoutError, EOFError, OSError):
            gateway.node.channel.waitclose(TEARDOWN_SECONDS)

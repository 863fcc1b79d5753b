"""Pytest plug-in: parallel workers (`pytest --workers 4`), forked from the process that has collected all tests.

That process imports all of them and computes nothing. A worker asks it for a group of tests, runs them, and sends their reports
back; the parent logs these as if it had run the tests itself.
"""

import gc
import itertools
import logging
import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

import pytest

# The tests of a lab run on one worker, one after the other, and share its cluster; others share the wheel that they install. They
# start first: they take longest.
LABS = {
    "tests/k8s/": "kubernetes",
    "tests/benchmarks/": "kubernetes",
    "tests/slurm/ssh/": "ssh",
    "tests/slurm/test_s": "second slurm",  # with a cluster of its own: one alone would be the last to end
    "tests/slurm/": "slurm",
    "tests/jobs/inference/engines/": "engines",
    "tests/test_package.py": "wheel",
    "tests/test_colliding_names.py": "wheel",
}
# then modules of minutes, so that short ones are left when the first worker has nothing more to do
LONG = ("tests/test_", "tests/chaos/", "tests/sharding/", "tests/cluster/", "tests/datapipe/")
LONG += ("tests/jobs/training/", "tests/jobs/serving/", "tests/jobs/orchestration/")
LAST = "tests/datapipe/test_process_pool.py"  # it stops the server from which a worker forks ranks
# The tests of a folder that do not ask for its fixture run as all others do: a lab computes even while nobody uses it.
CLUSTERS = {"tests/k8s/": "cluster"}
TEARDOWN_SECONDS = 60.0
POLL_SECONDS = 1.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--workers", type=int, default=0, metavar="N", help="run the tests on N processes; 0: in this one")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(not mark.args for mark in item.iter_markers("soak")):
            raise pytest.UsageError(f"{item.nodeid}: say why it is left to make soak: @pytest.mark.soak('reason')")
    items.sort(key=place)


def lab_of(item: pytest.Item) -> str | None:
    """Return the lab whose worker runs a test."""
    folder = next((folder for folder in LABS if item.nodeid.startswith(folder)), "")
    idle = folder in CLUSTERS and CLUSTERS[folder] not in getattr(item, "fixturenames", ())
    return None if idle else LABS.get(folder)


def place(item: pytest.Item) -> int:
    """The place of a test among the groups that start one after the other."""
    first = 0 if lab_of(item) else len(LABS)
    places = (at for at, folder in enumerate((*LABS, *LONG)) if at >= first and item.nodeid.startswith(folder))
    return 100 if item.nodeid.startswith(LAST) else next(places, 99)


def groups_of(items: list[pytest.Item]) -> Iterator[deque[int]]:
    """Yield the places of the tests that run on one worker: those of a lab, and those of a module."""
    groups: dict[str, deque[int]] = {}
    for at, item in enumerate(items):
        groups.setdefault(lab_of(item) or item.nodeid.partition("::")[0], deque()).append(at)
    yield from groups.values()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Generator[None, object, object]:
    """Let pytest cache the modules whose asserts it has rewritten, which takes as long as the rest of collection."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, False
    gc.disable()  # all that is made here stays: garbage would be looked for in vain
    try:
        return (yield)
    finally:
        sys.dont_write_bytecode = before
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    options = session.config.option
    if not options.workers or options.collectonly or session.testsfailed:  # collection has failed, which pytest says
        return None
    Workers(session).run(options.workers)
    return True


def pytest_unconfigure(config: pytest.Config) -> None:
    if config.option.workers:
        gc.freeze()  # pytest would look for garbage five times, among all that the tests import


class Worker:
    """A worker as its parent knows it."""

    def __init__(self, pid: int, connection: Connection) -> None:
        self.pid, self.connection = pid, connection
        self.left: deque[int] = deque()  # tests of its group that it has not begun
        self.begun: int | None = None
        self.released = False  # it has been told that nothing is left


class Workers:
    """The workers of a session, and the groups that none has yet."""

    def __init__(self, session: pytest.Session) -> None:
        self.session, self.items, self.config = session, session.items, session.config
        self.groups = deque(groups_of(session.items))
        self.workers: list[Worker] = []
        self.folder = self.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        self.numbers = itertools.count()

    def run(self, number: int) -> None:
        try:
            for _ in range(min(number, len(self.groups))):
                self.fork()
            while self.workers:
                self.listen()
                if self.session.shouldfail:
                    raise self.session.Failed(self.session.shouldfail)
                if self.session.shouldstop:
                    raise self.session.Interrupted(self.session.shouldstop)
        finally:
            self.stop()

    def fork(self) -> None:
        here, there = Pipe()
        folder = self.folder / f"w{next(self.numbers)}"
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            here.close()
            work(self.session, there, str(folder))
        there.close()
        self.workers.append(Worker(pid, here))

    def listen(self) -> None:
        """Hear each worker that has said something, or has ended."""
        ready = wait([worker.connection for worker in self.workers], POLL_SECONDS)
        for worker in list(self.workers):
            try:
                if worker.connection in ready:
                    self.hear(worker, *worker.connection.recv())
                # its children may hold its end of the pipe
                elif not ready and os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    self.bury(worker)
            except (EOFError, ConnectionError):
                self.bury(worker)

    def hear(self, worker: Worker, word: str, value: Any) -> None:
        """Do what a worker asks for, or log what it says."""
        if word == "next":
            worker.left = self.groups.popleft() if self.groups else deque()
            worker.released = not worker.left
            worker.connection.send(list(worker.left))
        elif word == "begin":
            worker.begun = worker.left.popleft()
            item = self.items[worker.begun]
            self.config.hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        else:
            self.log(self.config.hook.pytest_report_from_serializable(config=self.config, data=value))

    def log(self, report: pytest.TestReport) -> None:
        self.config.hook.pytest_runtest_logreport(report=report)
        if report.when == "teardown":
            self.config.hook.pytest_runtest_logfinish(nodeid=report.nodeid, location=report.location)

    def bury(self, worker: Worker) -> None:
        """Take leave of a worker. If it died, the test that it had begun has failed, and a new worker runs the others."""
        code = os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1])
        self.workers.remove(worker)
        if worker.released and code == 0:
            return
        why = f"its worker died by {signal.Signals(-code).name}" if code < 0 else f"its worker ended with exit code {code}"
        if worker.begun is None:
            raise RuntimeError(f"no test has begun, and {why}")
        item = self.items[worker.begun]
        self.log(pytest.TestReport(item.nodeid, item.location, {}, "failed", why, "call"))
        self.log(pytest.TestReport(item.nodeid, item.location, {}, "passed", None, "teardown"))
        if worker.left:
            self.groups.appendleft(worker.left)
        if self.groups:
            self.fork()

    def stop(self) -> None:
        """Interrupt the workers that are left, so that they take their labs down."""
        for worker in self.workers:
            os.kill(worker.pid, signal.SIGINT)
        deadline = time.monotonic() + TEARDOWN_SECONDS
        for worker in self.workers:
            with suppress(EOFError, OSError):
                while worker.connection.poll(max(0.0, deadline - time.monotonic())):
                    worker.connection.recv()  # else it might wait for its reports to be read
            if time.monotonic() > deadline:
                os.kill(worker.pid, signal.SIGKILL)
            os.waitpid(worker.pid, 0)


def work(session: pytest.Session, connection: Connection, folder: str) -> NoReturn:
    """Run groups of tests in this process, which is a fork, until none is left; then exit."""
    code = 1
    try:
        become_a_worker(session, folder)
        session.config.pluginmanager.register(Reports(session.config, connection))
        run_groups(session, connection)
        code = 0
    except (KeyboardInterrupt, EOFError, ConnectionError):
        pass  # the parent has stopped this worker, or is gone
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(code)  # without the exit handlers of the parent


class Reports:
    """A plug-in of a worker that sends the reports to its parent."""

    def __init__(self, config: pytest.Config, connection: Connection) -> None:
        self.config, self.connection = config, connection

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.connection.send(("report", self.config.hook.pytest_report_to_serializable(config=self.config, report=report)))


def become_a_worker(session: pytest.Session, folder: str) -> None:
    """Give this process what it must not share: streams, a directory, and who hears of the tests."""
    gc.freeze()  # collections leave out, and so do not copy, what is imported
    os.setpgrp()  # Ctrl-C reaches the parent alone, which interrupts each worker once
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    config, plugins = session.config, session.config.pluginmanager
    for name in ("terminalreporter", "terminalprogress-plugin"):
        if plugins.has_plugin(name):
            plugins.unregister(name=name)
    silent = pytest.TerminalReporter(config, open(os.devnull, "w"))  # noqa: SIM115 - other plug-ins write to it
    silent.pytest_sessionstart(session)
    plugins.register(silent, "terminalreporter")
    config.option.basetemp = folder
    plugins.getplugin("tmpdir").pytest_configure(config)
    capture = plugins.getplugin("capturemanager")
    capture.stop_global_capturing()  # its files are the parent's
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    capture.start_global_capturing()
    log_to_stderr()
    capture.suspend_global_capture()  # until a test begins
    if server := sys.modules.get("tests.fork_server"):
        server.fork_server()


def run_groups(session: pytest.Session, connection: Connection) -> None:
    item = None
    try:
        while True:
            connection.send(("next", None))
            group = connection.recv()
            if not group:
                return
            for at, after in itertools.pairwise([*group, None]):
                item = session.items[at]
                connection.send(("begin", None))
                # after the group's last test the fixtures of modules and packages end, those of the session do not
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=session if after is None else session.items[after])
    finally:
        if item is not None:
            end_session(item)


def end_session(item: pytest.Item) -> None:
    """Take down the fixtures of the session, as part of the last test."""
    plugins = item.config.pluginmanager

    def take_down() -> None:
        with plugins.getplugin("capturemanager").item_capture("teardown", item):
            plugins.getplugin("runner").pytest_sessionfinish(item.session)

    call = pytest.CallInfo.from_call(take_down, "teardown")
    if call.excinfo is not None:
        report = item.ihook.pytest_runtest_makereport(item=item, call=call)
        item.ihook.pytest_runtest_logreport(report=report)


def log_to_stderr() -> None:
    """Point what has been logging to a standard stream at that of this process: the one it had was of pytest, and is closed."""
    for logger in (logging.root, *logging.root.manager.loggerDict.values()):
        for handler in getattr(logger, "handlers", ()):
            if type(handler) is logging.StreamHandler:
                handler.stream = sys.stderr  # `setStream` would flush what is closed

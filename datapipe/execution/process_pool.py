"""Pool of processes of this machine that run tasks; processes that die are replaced."""

import logging
import multiprocessing.forkserver
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from ropewalk.cluster.engines.entry import die_with_parent
from ropewalk.cluster.errors import DataError, RopewalkError, StopRequested
from ropewalk.cluster.process.scratch import make_scratch, remove_scratch
from ropewalk.cluster.process.signals import STOP_SIGNALS
from ropewalk.cluster.run.project import add_project_path
from ropewalk.datapipe.passes.task import DEATHS_A_TASK, SINGLE_THREADED, Task

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25


class ProcessPool:
    """Processes that work on one data set; a context manager that ends them on exit.

    They are forked from a server that has imported the worker's modules, and starts to import them at once.
    """

    def __init__(self, output_url: str, work_url: str, processes: int, stop: Callable[[], bool]) -> None:
        self.urls, self.size, self.stop = (output_url, work_url), processes, stop
        self.deaths = 0
        self.idle: list[tuple[Connection, Any]] = []
        self.busy: dict[Connection, tuple[Any, Task]] = {}
        self.scratch = make_scratch("w")
        self.settings: dict[str, Any] = multiprocessing.current_process()._config  # type: ignore[attr-defined]
        self.outer_tempdir = self.settings.get("tempdir")
        self.settings["tempdir"] = str(self.scratch)  # of the server's socket
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["ropewalk.datapipe.execution.preloaded"])
        multiprocessing.forkserver.ensure_running()

    def __enter__(self) -> "ProcessPool":
        return self

    def __exit__(self, *_: object) -> None:
        self._end_all()
        multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]
        self.settings["tempdir"] = self.outer_tempdir
        remove_scratch(self.scratch)

    def run_tasks(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Any]]:
        """Yield each task with its result when it is done.

        Raises the error of a task; DataError for a task that killed three processes; StopRequested once a stop is requested:
        committed work is kept, work in progress is discarded.
        """
        waiting = list(reversed(tasks))
        deaths: dict[int, int] = {}
        try:
            while waiting or self.busy:
                if self.stop():
                    raise StopRequested("asked to stop; committed units and shards are kept")
                while waiting and len(self.busy) < self.size:
                    self._begin(waiting.pop())
                for connection in wait(list(self.busy), POLL_SECONDS):
                    assert isinstance(connection, Connection)
                    process, task = self.busy.pop(connection)
                    try:
                        result = connection.recv()
                    except (EOFError, OSError):
                        process.join()
                        deaths[id(task)] = deaths.get(id(task), 0) + 1
                        self._check_deaths(task, deaths[id(task)], process.exitcode)
                        waiting.append(task)
                        continue
                    self.idle.append((connection, process))
                    if isinstance(result, Exception):
                        raise result
                    yield task, result
        except BaseException:
            self._end_all()
            raise

    def _begin(self, task: Task) -> None:
        """Give a task to an idle process, or to a new one."""
        if self.idle:
            connection, process = self.idle.pop()
        else:
            connection, end = self.context.Pipe()
            process = self.context.Process(target=_work, args=(end, *self.urls), name="worker", daemon=True)
            process.start()
            end.close()
        self.busy[connection] = process, task
        try:
            connection.send(task)
        except OSError:
            log.debug("%s: its process is gone, and is replaced", task.label)

    def _end_all(self) -> None:
        processes = [process for _, process in self.idle] + [process for process, _ in self.busy.values()]
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
        self.idle, self.busy = [], {}

    def _check_deaths(self, task: Task, deaths: int, code: int | None) -> None:
        self.deaths += 1
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        if deaths >= DEATHS_A_TASK:
            raise DataError(
                f"{task.label}: killed {deaths} processes ({how}); if memory ran out, give them more (resources.memory_gib) or"
                " use fewer (actors), otherwise check this input; committed work is kept"
            )
        log.warning("%s: its process died (%s); another one retries it", task.label, how)


def _work(connection: Connection, output_url: str, work_url: str) -> None:
    """Run tasks until the pool ends this process, and send each one's result or error."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the driver ends this process
    die_with_parent()
    os.environ.update(SINGLE_THREADED)
    add_project_path()
    import pyarrow as pa  # noqa: PLC0415 - the server has imported them, and the driver does not need them

    from ropewalk.datapipe.execution.preloaded import Worker  # noqa: PLC0415

    pa.set_cpu_count(1)
    worker = Worker(output_url, work_url)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            result = worker.do(task)
        except RopewalkError as error:
            result = error
        except Exception:  # it may not be possible to send it
            result = RuntimeError(f"{task.label}:\n{traceback.format_exc()}")
        connection.send(result)

"""Tasks of a data set on processes of one machine: killed ones are replaced, errors and stops end the pass."""

import multiprocessing.forkserver
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from ropewalk.cluster.errors import DataError, StaleAttemptError, StopRequested
from ropewalk.cluster.process.forking import forked_interpreters
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.execution.process_pool import ProcessPool
from ropewalk.datapipe.passes.task import Task
from ropewalk.jobs.preprocess.config import PreprocessConfig
from ropewalk.jobs.preprocess.job import main
from tests.fakes.documents import configure, contents, make, some_documents, write_lines
from tests.fork_server import PRELOAD, SERVER
from tests.patience import until

HERE = __name__


@pytest.fixture(autouse=True)
def _forked() -> Iterator[None]:
    """Fork the server of each pool from this process, which has its imports."""
    with forked_interpreters():
        yield


def answer(output: StoragePath, work: StoragePath, number: int) -> tuple[int, int]:
    return number, os.getpid()


def die_until(output: StoragePath, work: StoragePath, deaths: int) -> int:
    """Die without a word in the first calls."""
    marks = Path(output.url)
    calls = len(list(marks.glob("call-*")))
    (marks / f"call-{calls}").touch()
    if calls < deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    return calls


def refuse(output: StoragePath, work: StoragePath) -> None:
    raise DataError("no such thing")


def crash(output: StoragePath, work: StoragePath) -> None:
    raise ZeroDivisionError("in a task")


def task(function: Any, *arguments: Any) -> Task:
    return Task(method=f"{HERE}:{function.__name__}", label=function.__name__, arguments=arguments)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[ProcessPool]:
    with ProcessPool(str(tmp_path), str(tmp_path / ".work"), 2, (tmp_path / "stop").exists) as opened:
        yield opened
    assert not opened.scratch.exists()


def test_ranks_of_later_tests_keep_their_imports() -> None:
    multiprocessing.get_context("forkserver").set_forkserver_preload([])  # as a pool does
    SERVER.Process(target=print)
    assert multiprocessing.forkserver._forkserver._preload_modules == PRELOAD


def test_tasks_run_on_all_processes_and_each_gives_one_result(pool: ProcessPool) -> None:
    tasks = [task(answer, number) for number in range(40)]
    results = [(each.arguments[0], result) for each, result in pool.run_tasks(tasks)]
    assert sorted(number for number, _ in results) == list(range(40))
    assert all(number == result[0] for number, result in results)
    pids = {pid for _, (_, pid) in results}
    assert os.getpid() not in pids
    assert len(pids) <= 2
    again = {pid for _, (_, pid) in pool.run_tasks(tasks)}
    assert again <= pids | {process.pid for _, process in pool.idle}, "processes are kept from pass to pass"


def test_a_task_whose_process_dies_is_retried_by_another_one_but_not_for_ever(pool: ProcessPool) -> None:
    assert [result for _, result in pool.run_tasks([task(die_until, 2)])] == [2]
    assert pool.deaths == 2
    with pytest.raises(DataError, match=r"die_until: killed 3 processes \(signal 9\).*resources\.memory_gib"):
        list(pool.run_tasks([task(die_until, 9)]))


def test_errors_of_tasks_are_raised_with_their_origin_and_a_stop_ends_all(pool: ProcessPool, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^no such thing$"):
        list(pool.run_tasks([task(refuse)]))
    with pytest.raises(RuntimeError, match=r"crash:\n(.|\n)*ZeroDivisionError: in a task"):
        list(pool.run_tasks([task(crash)]))
    results = pool.run_tasks([task(answer, number) for number in range(40)])
    _, (_, pid) = next(results)
    (tmp_path / "stop").touch()
    with pytest.raises(StopRequested):
        list(results)
    assert not psutil.pid_exists(pid)


def context_of(config: PreprocessConfig, root: Path) -> JobContext:
    record = {"config": config.model_dump(mode="json"), "resources": {"cpus": 2}, "engine": "process"}
    run = RunDir.create("preprocess", record, root=root)
    return JobContext(run=run, attempt=run.begin_attempt())


def test_an_orphan_of_an_older_attempt_does_not_finish(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", some_documents(20))
    orphan = context_of(configure(source, tmp_path / "out", actors=1), tmp_path / "runs")
    orphan.run.begin_attempt()
    with pytest.raises(StaleAttemptError):
        main(orphan)
    assert not (tmp_path / "out/manifest.json").exists()


def test_a_run_on_one_node_gives_the_bytes_of_a_serial_one_also_if_its_processes_are_killed(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", some_documents(600))
    keys = {"unit_mib": 0.02, "shard_mib": 0.02}
    make(source, tmp_path / "serial", **keys)
    context = context_of(configure(source, tmp_path / "out", actors=2, **keys), tmp_path / "runs")
    killed: list[int] = []

    def kill_one() -> None:
        until(lambda: len(list((tmp_path / "out/.work/units").glob("*.json"))) >= 2)
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if child.ppid() != os.getpid():  # it is a child of the server
                    child.kill()
                    killed.append(child.pid)
                    return

    killer = threading.Thread(target=kill_one)
    killer.start()
    main(context)
    killer.join()
    assert killed
    assert contents(tmp_path / "out") == contents(tmp_path / "serial")

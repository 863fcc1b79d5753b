"""`preprocess fanout=array` without Slurm: the same bytes whoever is killed, and nothing left running."""

import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from ropewalk.cluster.errors import EXIT_LOST_PEER, ConfigError, DataError, StopRequested
from ropewalk.cluster.process.kill import processes_of
from ropewalk.cluster.spec import Engine
from ropewalk.datapipe.execution import slurm_array
from ropewalk.datapipe.execution.array_pool import ArrayPool
from ropewalk.datapipe.execution.array_task import LEASE, LEASE_SECONDS, Share, do_share, lease_holds, result_name
from ropewalk.datapipe.execution.config import ArrayOptions
from ropewalk.datapipe.execution.executor import UNLIMITED
from ropewalk.datapipe.execution.local_processes import LocalProcesses
from ropewalk.datapipe.execution.slurm_array import SlurmArray
from ropewalk.datapipe.passes.worker import Task
from ropewalk.jobs.preprocess.job import main
from tests.datapipe.test_preprocess import context_of, source, touch_when  # noqa: F401
from tests.fakes.documents import configure, contents, make
from tests.fakes.driver import Driver
from tests.fakes.notice import Notice
from tests.fork_server import SERVER
from tests.patience import HANG_SECONDS
from tests.processes import words_of

KEYS: dict[str, Any] = {"unit_mib": 0.01, "shard_mib": 0.02}
ARRAY: dict[str, Any] = {"fanout": "array", "array": {"at_once": 2}, **KEYS}


def fanout(folder: Path, **options: Any) -> ArrayPool:
    executor = LocalProcesses(ArrayOptions(**options), cpus=2)
    return ArrayPool(
        (str(folder / "out"), str(folder / "out/.work")),
        executor,
        folder / "attempts/0001/array",
        stop=lambda: False,
        on_submit=lambda **_: None,
    )


def elements(driver: Driver) -> list[psutil.Process]:
    """The processes that do the work, without submitit's own above them."""
    return [p for p in driver.family() if "submitit.core._submit" in words_of(p)]


def committed(output: Path) -> int:
    return len(list((output / ".work/units").glob("*.json")))


@pytest.mark.soak("a minute of interpreters; test_a_stop_ends_the_array_and_keeps_what_is_committed has an array")
@pytest.mark.slow
def test_an_array_gives_the_same_bytes_and_keeps_its_logs(tmp_path: Path, source: Path) -> None:  # noqa: F811
    manifest = make(source, tmp_path / "serial", **KEYS)
    config = configure(source, tmp_path / "out", fanout="array", array={"at_once": 2, "jobs": 3}, **KEYS)
    context = context_of(config, tmp_path / "runs")
    results = main(context)
    assert contents(tmp_path / "out") == contents(tmp_path / "serial")
    assert results["tokens"] == manifest.totals.tokens
    messages = [event for event in context.run.read_events() if event["event"] == "array"]
    assert messages[0]["stage"] == "0-ingest"
    left = [path for path in (context.run.attempt_dir(1) / "array").rglob("*") if path.is_file()]
    assert left
    assert all(path.name.endswith("_log.out") for path in left)
    assert processes_of(context.run.path) == []


@pytest.mark.soak("make test runs test_a_task_that_kills_three_elements_is_named")
@pytest.mark.slow
def test_killed_elements_are_replaced_and_a_killed_driver_leaves_nothing(tmp_path: Path, source: Path) -> None:  # noqa: F811
    make(source, tmp_path / "serial", **KEYS)
    output = tmp_path / "out"
    run = context_of(configure(source, output, **ARRAY), tmp_path / "runs").run
    driver = Driver(run.path)
    driver.wait_for(lambda: committed(output) >= 2 and bool(elements(driver)))
    family = driver.family()
    driver.process.kill()  # it alone: the elements must notice
    driver.process.wait()
    driver.log.close()
    _, alive = psutil.wait_procs(family, timeout=HANG_SECONDS)
    assert alive == []
    assert not (output / "manifest.json").exists()
    left = run.attempt_dir(2) / "array"
    assert list(left.rglob("*.pkl"))
    driver = Driver(run.path)
    driver.wait_for(lambda: bool(elements(driver)))
    for element in elements(driver):
        element.kill()
    driver.finish()
    assert contents(output) == contents(tmp_path / "serial")
    assert any(event["event"] == "elements_died" for event in run.read_events())
    assert not [path for path in left.rglob("*") if path.is_file() and not path.name.endswith("_log.out")]


@pytest.mark.slow
def test_a_stop_ends_the_array_and_keeps_what_is_committed(tmp_path: Path, source: Path) -> None:  # noqa: F811
    stopped = context_of(configure(source, tmp_path / "out", **ARRAY), tmp_path / "runs")
    assert stopped.stop_flag is not None
    watch = threading.Thread(target=touch_when, args=(lambda: committed(tmp_path / "out") >= 2, stopped.stop_flag))
    watch.start()
    with pytest.raises(StopRequested):
        main(stopped)
    watch.join()
    assert committed(tmp_path / "out") >= 2
    assert processes_of(stopped.run.path) == []
    assert not list((stopped.run.attempt_dir(1) / "array").rglob("*.pkl"))


class Poison:
    """Ends the process that reads it."""

    def __reduce__(self) -> Any:
        return os._exit, (9,)


@pytest.mark.slow
def test_a_task_that_kills_three_elements_is_named(tmp_path: Path) -> None:
    poison = Task(method="ingest", label="s3://bucket/poison.jsonl", arguments=(Poison(),))
    with fanout(tmp_path) as array, pytest.raises(DataError, match=r"s3://bucket/poison\.jsonl: killed 3 array tasks"):
        list(array.run_tasks([poison]))
    assert array.deaths == 3


@pytest.mark.soak("make test raises the errors of a pool's tasks")
def test_an_error_of_a_task_is_raised_as_it_is(tmp_path: Path) -> None:
    task = Task(method="encode", label="shards/part-00000.arrow", arguments=(None, "tokenizers"))
    with fanout(tmp_path) as array, pytest.raises(DataError, match="its tokenizer is gone"):
        list(array.run_tasks([task]))


@pytest.mark.soak(
    "another array; make test runs test_a_task_that_kills_three_elements_is_named, and raises errors of a pool's tasks"
)
def test_an_error_of_the_program_comes_with_its_traceback(tmp_path: Path) -> None:
    task = Task(method="ingest", label="a.jsonl", arguments=())
    with fanout(tmp_path) as array, pytest.raises(RuntimeError, match=r"TypeError.*ingest"):
        list(array.run_tasks([task]))


@pytest.mark.soak("six seconds of CPU time; make test stops an array, and replaces elements that die")
def test_an_element_asked_to_leave_hands_the_rest_over(tmp_path: Path) -> None:
    """SIGUSR2, before the time limit or at preemption: what is left undone is done by another, and is no death."""
    messages: list[int] = []
    tasks = [Task(method="do", label=str(number), arguments=(Notice(),)) for number in range(2)]
    with fanout(tmp_path, jobs=1) as array:
        array.on_submit = lambda **fields: messages.append(fields["elements"])
        assert [task.label for task, _ in array.run_tasks(tasks)] == ["0", "1"]
    assert messages == [1, 1]
    assert array.deaths == 0


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    with fanout(tmp_path, jobs=1) as array:
        files = ["1_0_log.out", "submission_file_1.sh"]
        for name in (*files, f".{result_name(4)}.7f7c2550", "1_submitted.pkl", "1_0_result.pkl.save_tmp"):
            (array.folder / name).touch()
    assert sorted(path.name for path in array.folder.iterdir()) == files


def test_an_element_whose_driver_is_gone_does_nothing(tmp_path: Path) -> None:
    """On another node only the lease shows that the driver is gone."""
    lease = tmp_path / LEASE
    lease.touch()
    assert lease_holds(lease)
    past = time.time() - LEASE_SECONDS - 1
    os.utime(lease, (past, past))
    task = Task(method="__repr__", label="", arguments=())
    share = Share(
        output_url=str(tmp_path / "out"),
        work_url=str(tmp_path / "out/.work"),
        tasks=((0, task),),
        folder=tmp_path,
        lease=lease,
        driver=None,
    )
    process = SERVER.Process(target=do_share, args=(share,))
    process.start()
    process.join(60)
    assert process.exitcode == EXIT_LOST_PEER
    assert not (tmp_path / result_name(0)).exists()
    lease.unlink()
    assert not lease_holds(lease)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"array": {"at_once": 3}}, "fanout is 'ray'"),
        ({"fanout": "array", "actors": 3}, "array.at_once instead"),
        ({"fanout": "array", "resources": {"nodes": 2}}, "resources.nodes=1"),
        ({"fanout": "rays"}, "fanout"),
    ],
)
def test_keys_that_do_not_go_together(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configure(tmp_path, tmp_path / "out", **keys)


def test_ray_is_only_started_for_several_nodes(tmp_path: Path) -> None:
    assert configure(tmp_path, tmp_path / "out", fanout="array").preferred_engine() is Engine.PROCESS
    assert configure(tmp_path, tmp_path / "out").preferred_engine() is Engine.PROCESS
    assert configure(tmp_path, tmp_path / "out", resources={"nodes": 2}).preferred_engine() is None
    assert configure(tmp_path, tmp_path / "out", resources={"nodes": "1..2"}).preferred_engine() is None


def test_how_a_pass_is_cut(tmp_path: Path) -> None:
    slurm = SlurmArray(ArrayOptions(at_once=100), "x")
    assert (slurm.num_array_tasks(1000), slurm.num_array_tasks(7)) == (100, 7)
    assert SlurmArray(ArrayOptions(), "x").room(60) == UNLIMITED
    here = LocalProcesses(ArrayOptions(jobs=8), cpus=2)
    assert (here.num_array_tasks(1000), here.room(0), here.room(2)) == (8, 2, 0)


@pytest.mark.parametrize(
    ("present", "array", "room"),
    [
        (0, {}, UNLIMITED),
        (60, {"RUNNING": 50, "PENDING": 10}, 40),
        (60, {"RUNNING": 61, "COMPLETING": 5, "COMPLETED": 30}, 39),  # one still ends, its results are there
        (60, {"RUNNING": 100}, 0),
        (100, {"RUNNING": 100}, 0),
        (0, {"RUNNING": 1, "COMPLETED": 99}, 0),  # the next pass waits for it
        (0, {"COMPLETING": 1, "COMPLETED": 99}, UNLIMITED),
        (1, {"CANCELLED": 1}, UNLIMITED),
    ],
)
def test_the_places_that_an_array_leaves_free(
    present: int, array: dict[str, int], room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    elements = Counter(array).elements()
    monkeypatch.setattr(slurm_array, "_squeue", lambda _: {f"7_{number}": word for number, word in enumerate(elements)})
    assert SlurmArray(ArrayOptions(at_once=100), "x").room(present) == room


def test_an_element_that_does_not_end_by_itself_holds_no_pass_up(monkeypatch: pytest.MonkeyPatch) -> None:
    messages, ended = {"7_0": "COMPLETED", "7_1": "RUNNING"}, list[str]()
    monkeypatch.setattr(slurm_array, "_squeue", lambda _: messages)
    monkeypatch.setattr(slurm_array, "_scancel", ended.extend)
    monkeypatch.setattr(slurm_array, "ROOM_SECONDS", 0.0)
    slurm = SlurmArray(ArrayOptions(at_once=2), "x")
    assert (slurm.room(0), ended) == (0, []), "it is given the time to end"
    monkeypatch.setattr(slurm_array, "ENDING_SECONDS", -1.0)
    assert (slurm.room(1), slurm.room(0), ended) == (1, 0, ["7_1"]), "only where nobody is at work"
    messages["7_1"] = "CANCELLED"
    assert slurm.room(0) == UNLIMITED

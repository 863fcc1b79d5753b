"""Whoever is killed, driver or actor, and however often: the rerun gives the same bytes, and no work is done twice."""

import random
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from ropewalk.cluster.errors import DataError
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.passes.worker import Task
from tests.datapipe.test_preprocess import context_of, source  # noqa: F401
from tests.fakes.documents import configure, contents, make, write_lines
from tests.fakes.driver import Driver
from tests.fakes.near import planted
from tests.patience import HANG_SECONDS

KEYS: dict[str, Any] = {"unit_mib": 0.01, "shard_mib": 0.02}


def done(output: Path, folder: str) -> int:
    return len(list((output / ".work" / folder).glob("*.json")))


@pytest.mark.soak("a run killed at each stage; make test kills actors, and leaves an orphan of an older attempt to itself")
def test_killed_drivers_and_actors_leave_no_trace(tmp_path: Path, source: Path) -> None:  # noqa: F811
    make(source, tmp_path / "serial", **KEYS)
    output = tmp_path / "out"
    run = context_of(configure(source, output, actors=2, **KEYS), tmp_path / "runs", cpus=3).run
    driver = Driver(run.path)
    driver.wait_for(lambda: done(output, "units") >= 1 and bool(driver.actors()))
    for actor in driver.actors():
        actor.kill()
    driver.wait_for(lambda: done(output, "encoded") >= 1)
    driver.kill()
    assert not (output / "manifest.json").exists()
    (output / "shards/.part-00000.arrow.xyz").write_bytes(b"what a killed writer leaves")
    driver = Driver(run.path)
    driver.finish()
    assert contents(output) == contents(tmp_path / "serial")


ALL_STAGES: dict[str, Any] = {
    "near_duplicates": {},
    "paragraphs": {},
    "language": {"min_confidence": 0, "code": False},
    "filters": [{"gopher_quality": {"min_words": 5, "min_stop_words": None}}],
    "pii": {},
    "balance": {"by": "language", "temperature": 0.5},
    "unit_mib": 0.01,
    "shard_mib": 0.02,
}


@pytest.mark.soak("21 kills of the driver, an actor or all of Ray; make test runs test_work_that_is_committed_is_not_done_again")
def test_random_kills_of_all_stages_leave_no_trace(tmp_path: Path) -> None:
    """Seven each of the driver, of an actor, and of all of Ray below the driver, after a random number of finished tasks."""
    chance = random.Random(18)
    notice = "\n\nAll rights reserved, of whoever laid this rope of the lane. mail jane.doe@mail.example.org"
    documents = [{**item, "text": item["text"] + notice} for item in planted(120, 800)]
    path = write_lines(tmp_path / "in.jsonl", documents)
    items = write_lines(tmp_path / "items.jsonl", [{"question": " ".join(documents[5]["text"].split()[:30])}])
    keys = {**ALL_STAGES, "decontaminate": {"against": [str(items)]}}
    make(path, tmp_path / "serial", **keys)
    output = tmp_path / "out"
    run = context_of(configure(path, output, actors=2, **keys), tmp_path / "runs", cpus=3).run
    driver, reached = Driver(run.path), 0
    for kind in [kind for _ in range(7) for kind in chance.sample(["driver", "actor", "Ray"], 3)]:
        await_tasks(driver, output, reached + chance.randrange(1, 16))
        if kind == "driver":
            driver.kill()
        elif kind == "actor":
            end([chance.choice(driver.actors())])
        else:
            end(driver.family())
            assert driver.process.wait(timeout=HANG_SECONDS) != 0
            driver.log.close()
        reached = finished_tasks(output)
        if driver.process.poll() is not None:
            driver = Driver(run.path)
    driver.finish()
    assert contents(output) == contents(tmp_path / "serial")


def end(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def finished_tasks(output: Path) -> int:
    return sum(1 for _ in (output / ".work").rglob("*.json"))


def await_tasks(driver: Driver, output: Path, goal: int) -> None:
    driver.wait_for(lambda: finished_tasks(output) >= goal and bool(driver.actors()))


def test_work_that_is_committed_is_not_done_again(tmp_path: Path, source: Path) -> None:  # noqa: F811
    """Units and shards of a killed run are taken as they are: their files are not written anew."""
    from ropewalk.datapipe.passes.pipeline import make_data_set
    from ropewalk.datapipe.passes.progress import Progress
    from tests.fakes.documents import in_this_process

    config = configure(source, tmp_path / "out", **KEYS)
    carried: list[str] = []

    def dies_after(limit: int) -> Any:
        def run_tasks(tasks: list[Task]) -> Any:
            for task, result in in_this_process(config)(tasks):
                carried.append(f"{task.method} {task.label}")
                if len(carried) == limit:
                    raise KeyboardInterrupt
                yield task, result

        return run_tasks

    make(source, tmp_path / "serial", **KEYS)
    for limit in (3, 9, 40):
        with pytest.raises(KeyboardInterrupt):
            make_data_set(config, config.seed, dies_after(limit), Progress(lambda _: None))
    plan = tmp_path / "out/.work/plan.json"
    mine = plan.read_text()
    plan.write_text(re.sub(r'"tokenizers": "[^"]*"', '"tokenizers": "0.0.1"', mine))
    with pytest.raises(DataError, match=r'tokenizers was "0\.0\.1", is "'):
        make_data_set(config, config.seed, dies_after(0), Progress(lambda _: None))
    plan.write_text(mine)
    make_data_set(config, config.seed, dies_after(0), Progress(lambda _: None))
    once = [name for name in carried if not name.startswith("reject")]
    assert len(set(once)) == len(once)
    assert contents(tmp_path / "out") == contents(tmp_path / "serial")
    assert not StoragePath(tmp_path / "out").exists(".work")

"""`preprocess fanout=array` on real Slurm, without accounting: the limit, lost elements, the array of a dead driver."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.run.directory import RunDir
from ropewalk.slurm.lab.cluster import Lab
from tests.datapipe.test_preprocess import context_of, source  # noqa: F401
from tests.fakes.documents import configure, contents, make
from tests.patience import Patience, until
from tests.slurm.conftest import ROOT

KEYS: dict[str, Any] = {"unit_mib": 0.02, "shard_mib": 0.05}
ARRAY: dict[str, Any] = {"fanout": "array", "array": {"at_once": 2, "jobs": 3, "minutes": 5}, **KEYS}

LINGERING = """
import atexit, sys, time
if "submitit.core._submit" in sys.orig_argv:
    atexit.register(time.sleep, 0.7)
"""

pytestmark = pytest.mark.slow


class Driver:
    """The job's driver, below sbatch."""

    def __init__(self, lab: Lab, run: RunDir) -> None:
        self.lab, self.run = lab, run
        command = f"exec {sys.executable} -m tests.fakes.drive {run.path}"
        output = run.path / "driver.log"
        arguments = ["--parsable", f"--chdir={ROOT}", f"--output={output}", "--open-mode=append", "--wrap", command]
        self.id = lab.command("sbatch", *arguments).strip()

    def state(self) -> str:
        return self.lab.command("squeue", "--noheader", "--states=all", f"--jobs={self.id}", "--format=%T").strip()

    def kill(self) -> None:
        """SIGKILL to the driver's process, of which Slurm is told nothing."""
        self.lab.command("scancel", "--batch", "--signal=KILL", self.id)
        until(lambda: self.state() == "FAILED")

    def elements(self, attempt: int) -> dict[str, str]:
        """id → state of the elements that an attempt's driver submitted."""
        name = f"{self.run.id}.array-{attempt}"
        text = self.lab.command("squeue", "--noheader", "--array", "--states=all", f"--name={name}", "--format=%i %T")
        return dict(line.split() for line in text.splitlines())

    def running(self, attempt: int) -> list[str]:
        return [identity for identity, state in self.elements(attempt).items() if state == "RUNNING"]


@pytest.mark.soak("a minute of jobs; make test runs test_a_stop_ends_the_array_and_keeps_what_is_committed without Slurm")
def test_at_most_so_many_at_once_and_a_lost_one_is_replaced(
    tmp_path: Path,
    source: Path,  # noqa: F811
    slurm_lab: Lab,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also while elements whose results are there still end, as on a slow machine: beside others, and from pass to pass."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(LINGERING)
    make(source, tmp_path / "serial", **KEYS)
    run = context_of(configure(source, tmp_path / "out", **ARRAY), tmp_path / "runs").run
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    driver = Driver(slurm_lab, run)
    victim = until(lambda: driver.running(2))[0]
    slurm_lab.command("scancel", victim)
    most = 0

    def over() -> bool:
        nonlocal most
        most = max(most, len(driver.running(2)))
        return driver.state() not in {"PENDING", "RUNNING", "COMPLETING"}

    until(over, Patience.RUN)
    assert driver.state() == "COMPLETED", (run.path / "driver.log").read_text()[-3000:]
    assert most == 2
    assert contents(tmp_path / "out") == contents(tmp_path / "serial")
    assert driver.elements(2).pop(victim) == "CANCELLED"
    assert Counter(driver.elements(2).values()) == {"COMPLETED": len(driver.elements(2)) - 1, "CANCELLED": 1}
    assert [event["deaths"] for event in run.read_events() if event["event"] == "elements_died"] == [1]


@pytest.mark.soak("make test runs test_a_stop_ends_the_array_and_keeps_what_is_committed without Slurm")
def test_a_new_driver_ends_the_array_of_a_killed_one(
    tmp_path: Path,
    source: Path,  # noqa: F811
    slurm_lab: Lab,
) -> None:
    make(source, tmp_path / "serial", **KEYS)
    run = context_of(configure(source, tmp_path / "out", **ARRAY), tmp_path / "runs").run
    first = Driver(slurm_lab, run)
    until(lambda: list((tmp_path / "out/.work/units").glob("*.json")))
    first.kill()
    assert {"RUNNING", "PENDING"} & set(first.elements(2).values())
    second = Driver(slurm_lab, run)
    until(lambda: second.elements(3))
    assert set(first.elements(2).values()) <= {"COMPLETED", "CANCELLED"}
    until(lambda: second.state() not in {"PENDING", "RUNNING", "COMPLETING"}, Patience.RUN)
    assert second.state() == "COMPLETED", (run.path / "driver.log").read_text()[-3000:]
    assert contents(tmp_path / "out") == contents(tmp_path / "serial")
    assert set(second.elements(3).values()) == {"COMPLETED"}

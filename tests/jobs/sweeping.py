"""Start sweeps over a toy job, look at their trials, and see that nothing is left of them."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.process.kill import processes_of, writers_of
from ropewalk.cluster.run.directory import RUNS_VARIABLE, RunDir
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.orchestration.sweep.config import SweepConfig
from ropewalk.jobs.orchestration.sweep.records import TrialRecord, read_records
from ropewalk.jobs.runs.show.status import final_outcome
from ropewalk.jobs.runs.submit.resume import resume
from ropewalk.jobs.runs.submit.submit import submit
from tests.fakes.searched import make_plugin
from tests.patience import Patience, until
from tests.processes import words_of

ROOT = Path(__file__).resolve().parents[2]


class Swept:
    """A sweep that was submitted."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.root = run.path.parent

    def records(self) -> list[TrialRecord]:
        return read_records(self.run)

    def runs(self) -> list[RunDir]:
        return [RunDir(self.root / name) for record in self.records() for name in record.runs]

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.run.read_events() if event["event"] == kind]

    def driver_pid(self, attempt: int | None = None) -> int | None:
        """The process that runs the sweep's entry, as soon as there is one."""
        attempts = self.run.attempts()
        number = attempt or (attempts[-1] if attempts else 1)
        result = writers_of(self.run.log_dir(number) / "rank-0.log")
        return result[0].pid if result and self.run.outcome(number) is None else None

    def kill_driver(self) -> None:
        """SIGKILL, and wait until its attempt is concluded."""
        number = self.run.attempts()[-1]
        pid = until(lambda: self.driver_pid(number), describe=self.said)
        os.kill(pid, signal.SIGKILL)
        until(lambda: self.run.outcome(number), describe=self.said)

    def finish(self, state: RunState = RunState.SUCCEEDED, patience: Patience = Patience.RUN) -> dict[str, Any]:
        outcome: Outcome = until(lambda: final_outcome(self.run), patience, self.said)
        assert outcome.state is state, self.said()
        return self.run.results()

    def steps(self) -> dict[str, list[int]]:
        return {run.id: [line["step"] for line in run.read_metrics()] for run in self.runs()}

    def resume(self) -> None:
        resume(self.run)

    def nothing_is_left(self) -> None:
        """No process of the sweep or of its trials."""
        until(lambda: not self.processes(), Patience.START, lambda: [words_of(p) for p in self.processes()])

    def processes(self) -> list[psutil.Process]:
        """Processes of the sweep and its trials; none is a child of this process."""
        ours = {process.pid for process in psutil.Process().children(recursive=True)}
        return [process for process in processes_of(self.root) if process.pid not in ours]

    def processes_of_driver(self) -> list[psutil.Process]:
        """Processes of the sweep itself, without its trials."""
        return [process for process in self.processes() if any(str(self.run.path) in word for word in words_of(process))]

    def said(self) -> str:
        logs = [f"== {p}\n{p.read_text()[-3000:]}" for p in sorted(self.run.path.glob("attempts/*/logs/*.log"))[-4:]]
        return "\n".join([*logs, *map(str, self.run.read_events()[-30:]), *map(str, self.records())])


@contextmanager
def sweeps(folder: Path) -> Iterator[Callable[..., Swept]]:
    """`start(**keys)` submits a sweep over the toy; what is left of sweeps at the end is killed, and is a failure."""
    plugin, started = make_plugin(folder / "plugin"), list[Swept]()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(plugin))
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{plugin}")
        patch.setenv(RUNS_VARIABLE, str(folder / "runs"))
        patch.setenv("WANDB_MODE", "disabled")

        def start(on: str = "local", **keys: Any) -> Swept:
            started.append(Swept(submit("sweep", sweep_config(**keys), on)))
            return started[-1]

        try:
            yield start
            for run in started:
                run.nothing_is_left()
        finally:
            for process in [p for item in started for p in item.processes()]:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue


def sweep_config(**keys: Any) -> SweepConfig:
    settings = {"job": "searched", "base": {"steps": 20}, "metric": "loss", "space": {"optim.lr": {"loguniform": [1e-3, 10.0]}}}
    config = load_config(SweepConfig, {**settings, **keys})
    assert isinstance(config, SweepConfig)
    return config

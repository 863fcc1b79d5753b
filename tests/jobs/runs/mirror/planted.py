"""Runs of which something ended as their owner must be told, made without running anything."""

from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import EXIT_FAILED, EXIT_LOST_PEER, EXIT_NEVER_RETRY
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import write_json
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.orchestration.sweep.records import TrialRecord, write_record


def _run(root: Path, name: str, kind: str = "pretrain", **config: Any) -> RunDir:
    record = {"job": kind, "config": {"name": name, "wandb": {"alerts": "all"}, **config}, "cluster": "local", "code": {}}
    run = RunDir.create(name, record, root)
    run.begin_attempt(handle="local:1")
    return run


def _end(run: RunDir, state: RunState, code: int, cause: str) -> RunDir:
    run.write_outcome(run.attempts()[-1], Outcome(state=state, exit_code=code, cause=cause, ended=2.0))
    return run


def failed(root: Path) -> RunDir:
    """An error of the program."""
    return _end(_run(root, "failed"), RunState.FAILED, EXIT_FAILED, "rank 0: ValueError: no")


def never_retried(root: Path) -> RunDir:
    """A mistake in the configuration, found by a rank."""
    return _end(_run(root, "mistake"), RunState.FAILED, EXIT_NEVER_RETRY, "rank 0: ConfigError: no such data set")


def anomaly(root: Path) -> RunDir:
    """A loss that is not a number."""
    run = _run(root, "anomaly")
    run.event("anomaly", step=3, position=9, problem="the loss is nan", policy="stop", loss="nan")
    return _end(run, RunState.FAILED, EXIT_NEVER_RETRY, "rank 0: NumericsError: step 3: the loss is nan")


def gate_failed(root: Path) -> RunDir:
    """An evaluation whose gate refuses."""
    run = _run(root, "gate", "evaluate", model="m")
    write_json(run.attempt_dir(1) / "result.json", {"gate": {"passed": False, "failed": []}})
    return _end(run, RunState.REFUSED, EXIT_NEVER_RETRY, "the gate refuses m: boolq 0.4, at least 0.5")


def out_of_disturbances(root: Path) -> RunDir:
    """Preempted as often as it may be, and once more."""
    run = _run(root, "disturbed", retries={"disturbances": 1})
    _end(run, RunState.REQUEUED, EXIT_LOST_PEER, "node 0 was lost")
    run.begin_attempt(handle="local:2")
    return _end(run, RunState.FAILED, EXIT_LOST_PEER, "node 0 was lost")


def hung(root: Path) -> RunDir:
    """Ranks that made no progress were replaced, and it went on."""
    run = _run(root, "hung")
    run.event("ranks_hung", step=2, seconds=4.0, ranks=[], stacks="stacks")
    return _end(run, RunState.SUCCEEDED, 0, "done")


def early_stop(root: Path) -> RunDir:
    """Validation did not improve any more."""
    run = _run(root, "early")
    run.event("early_stop", step=3, best=1.0)
    return _end(run, RunState.SUCCEEDED, 0, "done")


def sweep_over(root: Path) -> RunDir:
    """A sweep of one trial."""
    run = _run(root, "sweep", "sweep", job="pretrain", base={}, metric="train/loss", mode="min", space={})
    trial = _end(_run(root, "trial"), RunState.SUCCEEDED, 0, "done")
    write_record(run, TrialRecord(trial=0, parameters={}, runs=[trial.id]))
    return _end(run, RunState.SUCCEEDED, 0, "done")


CAUSES = {
    "failed": failed,
    "failed, and is not retried": never_retried,
    "stopped by an anomaly": anomaly,
    "gate failed": gate_failed,
    "out of retries after disturbances": out_of_disturbances,
    "ranks hung": hung,
    "stopped early": early_stop,
    "sweep finished": sweep_over,
}

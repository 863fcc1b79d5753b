"""What gates said of a run's model: runs that measured it with `require`, such as evaluations and audits."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cluster.errors import ConfigError
from cluster.run.directory import RunDir
from cluster.spec import RunState
from jobs.runs.status import final_outcome


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A run that is over and held the model to a gate."""

    run: RunDir
    passed: bool
    step: int | None  # of the checkpoint that was measured
    words: str  # each failed condition with figure and interval


def gates_of(model: RunDir) -> Iterator[Judged]:
    """Every run beside the model's that judged it, the oldest first."""
    for run in RunDir.all(model.path.parent):
        config = run.record.get("config") or {}
        if not config.get("require") or config.get("model") not in {model.id, str(model.path)}:
            continue
        outcome, results = final_outcome(run), run.results()
        if outcome is not None and outcome.state in {RunState.SUCCEEDED, RunState.REFUSED} and "gate" in results:
            gate: dict[str, Any] = results["gate"]
            words = "; ".join(str(each["words"]) for each in gate["failed"])
            yield Judged(run=run, passed=bool(gate["passed"]), step=results.get("model_step"), words=words)


def require_passed(model: RunDir, step: int) -> list[Judged]:
    """The newest gates of each job that judged the checkpoint of a step; all have passed. Raises ConfigError otherwise."""
    mine = [judged for judged in gates_of(model) if judged.step == step]
    newest = {judged.run.record.get("job"): judged for judged in mine}
    if not newest:
        raise ConfigError(
            f"{model.id}: no gate has judged its checkpoint of step {step}; `ropewalk run evaluate model={model.id} "
            "tasks=[...] require={...}` does, and so does audit"
        )
    for judged in newest.values():
        if not judged.passed:
            raise ConfigError(f"{model.id}: the gate of {judged.run.id} refused its checkpoint of step {step}: {judged.words}")
    return list(newest.values())

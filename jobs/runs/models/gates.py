"""What gates said of a model: runs that measured it with `require`, such as evaluations and audits."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.runs.models.find_model import names_model
from ropewalk.jobs.runs.show.status import all_runs, final_outcome


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A run that is over and held the model to a gate."""

    run: RunDir
    passed: bool
    step: int | None  # of the checkpoint that was measured; None of a directory
    words: str  # each failed condition with figure and interval
    figures: Mapping[str, Any] = field(default_factory=dict)  # {score: {require, value, standard_error, n}}

    def plain(self) -> dict[str, Any]:
        """The evidence as files hold it."""
        about = {"run": self.run.id, "job": self.run.record.get("job"), "passed": self.passed}
        return {**about, "figures": dict(self.figures), **({"words": self.words} if self.words else {})}


def gates_of(model: RunDir | Path, root: Path | None = None) -> Iterator[Judged]:
    """Every run beside the model's, or under `root`, that judged it, the oldest first."""
    place = root or (model.path.parent if isinstance(model, RunDir) else None)
    for run in RunDir.all(place) if place else all_runs():
        config = run.record.get("config") or {}
        if not config.get("require") or not names_model(str(config.get("model")), model):
            continue
        outcome, results = final_outcome(run), run.results()
        if outcome is not None and outcome.state in {RunState.SUCCEEDED, RunState.REFUSED} and "gate" in results:
            gate: dict[str, Any] = results["gate"]
            words = "; ".join(str(each["words"]) for each in gate["failed"])
            step, figures = results.get("model_step"), results.get("figures") or {}
            yield Judged(run=run, passed=bool(gate["passed"]), step=step, words=words, figures=figures)


def newest_gates(model: RunDir | Path, step: int | None, root: Path | None = None) -> list[Judged]:
    """The newest gate of each job that judged the checkpoint of a step, or a directory as it is now."""
    mine = [judged for judged in gates_of(model, root) if judged.step == step]
    if isinstance(model, Path):
        changed = max((path.stat().st_mtime for path in model.iterdir() if path.is_file()), default=0.0)
        mine = [judged for judged in mine if float(judged.run.record.get("created") or 0) >= changed]
    return list({judged.run.record.get("job"): judged for judged in mine}.values())


def require_passed(model: RunDir | Path, step: int | None, root: Path | None = None) -> list[Judged]:
    """The newest gates of each job that judged the checkpoint of a step, or a directory; all have passed. Raises ConfigError
    otherwise.
    """
    newest = newest_gates(model, step, root)
    name, ref = (model.id, f"{model.id}@{step}") if isinstance(model, RunDir) else (str(model), str(model))
    what = f"its checkpoint of step {step}" if isinstance(model, RunDir) else "it as it is now"
    if not newest:
        raise ConfigError(
            f"{name}: no gate has judged {what}; `ropewalk run evaluate model={ref} "
            "tasks=[...] require={...}` does, and so does audit"
        )
    check_passed(newest, name, what)
    return newest


def check_passed(judged: Sequence[Judged], name: str, what: str) -> None:
    """Raise ConfigError if one of these gates has refused the model."""
    for one in judged:
        if not one.passed:
            raise ConfigError(f"{name}: the gate of {one.run.id} refused {what}: {one.words}")

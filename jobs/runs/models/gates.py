"""Gate results of a model: runs that measured it with `require`, such as evaluations and audits."""

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
class GateResult:
    """Result of a gate: an ended run that measured the model with `require`."""

    run: RunDir
    passed: bool
    step: int | None  # of the measured checkpoint; None for a directory
    failures: str  # failed conditions with figures and intervals
    figures: Mapping[str, Any] = field(default_factory=dict)  # {score: {require, value, standard_error, n}}

    def plain(self) -> dict[str, Any]:
        """Return the result as stored in files."""
        about = {"run": self.run.id, "job": self.run.record.get("job"), "passed": self.passed}
        return {**about, "figures": dict(self.figures), **({"words": self.failures} if self.failures else {})}


def gates_of(model: RunDir | Path, root: Path | None = None) -> Iterator[GateResult]:
    """Yield the gate results of a model, oldest first, from runs under `root`, else beside the model's run, else all."""
    folder = root or (model.path.parent if isinstance(model, RunDir) else None)
    for run in RunDir.all(folder) if folder else all_runs():
        config = run.record.get("config") or {}
        if not config.get("require") or not names_model(str(config.get("model")), model):
            continue
        outcome, results = final_outcome(run), run.results()
        if outcome is not None and outcome.state in {RunState.SUCCEEDED, RunState.REFUSED} and "gate" in results:
            gate: dict[str, Any] = results["gate"]
            failures = "; ".join(str(each["words"]) for each in gate["failed"])
            step, figures = results.get("model_step"), results.get("figures") or {}
            yield GateResult(run=run, passed=bool(gate["passed"]), step=step, failures=failures, figures=figures)


def newest_gates(model: RunDir | Path, step: int | None, root: Path | None = None) -> list[GateResult]:
    """Return the newest gate result of each job for the checkpoint of a step, or for the current content of a directory."""
    mine = [judged for judged in gates_of(model, root) if judged.step == step]
    if isinstance(model, Path):
        changed = max((path.stat().st_mtime for path in model.iterdir() if path.is_file()), default=0.0)
        mine = [judged for judged in mine if float(judged.run.record.get("created") or 0) >= changed]
    return list({judged.run.record.get("job"): judged for judged in mine}.values())


def require_passed(model: RunDir | Path, step: int | None, root: Path | None = None) -> list[GateResult]:
    """Return the result of `newest_gates`. Raises ConfigError if there is none, or one has not passed."""
    newest = newest_gates(model, step, root)
    name, ref = (model.id, f"{model.id}@{step}") if isinstance(model, RunDir) else (str(model), str(model))
    subject = f"its checkpoint of step {step}" if isinstance(model, RunDir) else "its current content"
    if not newest:
        raise ConfigError(
            f"{name}: no gate has judged {subject}; use `ropewalk run evaluate model={ref} tasks=[...] require={{...}}`, "
            "or audit with `require`"
        )
    check_passed(newest, name, subject)
    return newest


def check_passed(results: Sequence[GateResult], name: str, subject: str) -> None:
    """Raise ConfigError if one of these gates has not passed."""
    for result in results:
        if not result.passed:
            raise ConfigError(f"{name}: {subject} did not pass the gate of {result.run.id}: {result.failures}")

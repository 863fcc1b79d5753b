"""Gate results of a model: runs that measured it with `require`, such as evaluations and audits."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.runs.show.status import all_runs, final_outcome

MODEL_WEIGHTS = "model_weights"  # in the results of such a run: content hash of the weights that it measured


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """Result of a gate: an ended run that measured the model with `require`."""

    run: RunDir
    passed: bool
    failures: str  # failed conditions with figures and intervals
    figures: Mapping[str, Any] = field(default_factory=dict)  # {score: {require, value, standard_error, n}}

    def plain(self) -> dict[str, Any]:
        """Return the result as stored in files."""
        about = {"run": self.run.id, "job": self.run.record.get("job"), "passed": self.passed}
        return {**about, "figures": dict(self.figures), **({"words": self.failures} if self.failures else {})}


def gates_of(weights: str, root: Path | None = None) -> Iterator[GateResult]:
    """Yield the results of gates that measured weights with this content hash, oldest first, from runs under `root`, else all."""
    for run in RunDir.all(root) if root else all_runs():
        if not (run.record.get("config") or {}).get("require"):
            continue
        outcome, results = final_outcome(run), run.results()
        if outcome is None or outcome.state not in {RunState.SUCCEEDED, RunState.REFUSED} or "gate" not in results:
            continue
        if results.get(MODEL_WEIGHTS) == weights:
            gate: dict[str, Any] = results["gate"]
            failures = "; ".join(str(each["words"]) for each in gate["failed"])
            yield GateResult(run=run, passed=bool(gate["passed"]), failures=failures, figures=results.get("figures") or {})


def newest_gates(weights: str, root: Path | None = None) -> list[GateResult]:
    """Return the newest gate result of each job for weights with this content hash."""
    return list({result.run.record.get("job"): result for result in gates_of(weights, root)}.values())


def require_passed(model: RunDir | Path, step: int | None, weights: str, root: Path | None = None) -> list[GateResult]:
    """Return the result of `newest_gates` for a model. Raises ConfigError if there is none, or one has not passed."""
    newest = newest_gates(weights, root)
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

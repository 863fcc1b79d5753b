"""What every run is doing, from its files and one question to each scheduler."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.backends.base import BackendState
from cluster.backends.profiles import load_backend, profile_file, read_profiles
from cluster.errors import ConfigError, RopewalkError
from cluster.run.directory import RunDir, runs_root
from cluster.run.files import read_json
from cluster.spec import Outcome, RunState
from jobs.tracking.metrics import broken_lines, latest_metrics

GONE = frozenset({"ended", "lost"})  # a backend's words for a run that nobody carries


def roots() -> list[Path]:
    """The runs' root, and the roots that clusters of the profile file name."""
    path = profile_file()
    profiles = read_profiles() if path and path.is_file() else {}
    named = [Path(p["runs"]).expanduser() for p in profiles.values() if isinstance(p, dict) and p.get("runs")]
    return list(dict.fromkeys([runs_root(), *named]))


def find_run(word: str) -> RunDir:
    """The run that a user means, under any root: a path, an id, its beginning, or `latest`. Raises ConfigError."""
    places = [root for root in roots() if root.is_dir()] or [runs_root()]
    if word == "latest":
        runs = all_runs()
        own = (run for run in reversed(runs) if run.parent is None)  # a sweep's trials are newer than the sweep
        return next(own, None) or RunDir.find(word)
    errors: list[ConfigError] = []
    for root in places:
        try:
            return RunDir.find(word, root)
        except ConfigError as error:
            errors.append(error)
    raise errors[0]


def all_runs() -> list[RunDir]:
    """Every run under every root, oldest first."""
    found = [RunDir.all(root) for root in roots()]
    if len(found) == 1:
        return found[0]
    runs = [run for runs in found for run in runs]
    return sorted(runs, key=lambda run: ((run.path / "run.yaml").stat().st_mtime_ns, run.id))


def final_outcome(run: RunDir) -> Outcome | None:
    """How the run ended, or None while another attempt may follow."""
    outcome = run.last_outcome()
    return outcome if outcome is not None and outcome.state.final else None


def is_final(run: RunDir) -> bool:
    """The newest attempt has an outcome that no other follows by itself."""
    return final_outcome(run) is not None


def states(runs: Sequence[RunDir], outcomes: Mapping[str, Outcome | None] | None = None) -> dict[str, BackendState]:
    """The state of each run by id; schedulers are asked once each, and only about runs that are not over.

    `outcomes` holds each run's `final_outcome`, where the caller has read them already.
    """
    found: dict[str, BackendState] = {}
    open_runs: dict[str, list[RunDir]] = {}
    for run in runs:
        outcome = final_outcome(run) if outcomes is None else outcomes[run.id]
        if outcome is not None:
            found[run.id] = BackendState(state=outcome.state, reason=outcome.cause)
        else:
            open_runs.setdefault(str(run.record.get("cluster", "local")), []).append(run)
    for cluster, mine in open_runs.items():
        found.update(_ask(cluster, mine))
    return found


def settle(run: RunDir) -> BackendState:
    """The state of a run, for whoever acts on it: an end of which only the scheduler knows is written down first."""
    if (outcome := final_outcome(run)) is not None:
        return BackendState(state=outcome.state, reason=outcome.cause)
    return _ask(str(run.record.get("cluster", "local")), [run], settled=True)[run.id]


def _ask(cluster: str, runs: Sequence[RunDir], *, settled: bool = False) -> Mapping[str, BackendState]:
    try:
        backend = load_backend(cluster)
        answers = dict(backend.settle(runs) if settled else backend.states(runs))
    except RopewalkError as error:
        return {run.id: BackendState(state=RunState.UNKNOWN, reason=str(error)) for run in runs}
    nothing = BackendState(state=RunState.UNKNOWN, reason=f"the cluster {cluster} does not know it")
    return {run.id: answers.get(run.id, nothing) for run in runs}


def summary(run: RunDir, state: BackendState) -> dict[str, Any]:
    """One line of `ps`, as plain values."""
    record, metrics = run.record, latest_metrics(run)
    attempts = run.attempts()
    details = run.attempt_details(attempts[-1]) if attempts else {}
    progress = read_json(run.progress) or {}
    return {
        "run": run.id,
        "job": record.get("job"),
        "state": state.state.value,
        "word": state.word,
        "reason": state.reason,
        "cluster": record.get("cluster"),
        "handle": state.handle or details.get("handle"),
        "attempts": len(attempts),
        "nodes": (details.get("resources") or record.get("resources") or {}).get("nodes"),
        "created": record.get("created"),
        "step": metrics.get("step"),
        "steps": (record.get("config") or {}).get("steps"),
        "loss": metrics.get("train/loss"),
        "progress": {key: progress.get(key) for key in ("stage", "done", "total", "unit")} if progress else None,
        "directory": str(run.path),
    }


def details(run: RunDir) -> dict[str, Any]:
    """All that `show --json` prints."""
    state = states([run])[run.id]
    record = run.record
    attempts = [_attempt(run, number, state) for number in run.attempts()]
    return {
        **summary(run, state),
        "results": run.results(),
        "metrics": latest_metrics(run),
        "attempt_list": attempts,
        "config": record.get("config"),
        "resources": record.get("resources"),
        "code": record.get("code"),
        "versions": record.get("versions"),
        "command": record.get("command"),
        "events": run.read_events()[-50:],
        "broken_lines": broken_lines(run),
    }


def _attempt(run: RunDir, number: int, state: BackendState) -> dict[str, Any]:
    """One attempt as plain values; of those without an outcome only the newest is what the run is, the others were lost."""
    outcome, newest = run.outcome(number), run.attempts()[-1]
    if outcome is not None:
        told, cause = outcome.state, outcome.cause
    elif number == newest:
        told, cause = state.state, state.reason
    else:
        told, cause = RunState.UNKNOWN, "lost: nobody lived to say how it ended"
    ended = {**vars(outcome), "state": outcome.state.value} if outcome else None
    return {**run.attempt_details(number), "outcome": ended, "state": told.value, "cause": cause}


def final_object(run: RunDir) -> dict[str, Any]:
    """The last line of `run --json`: run, job, state, directory, and the job's own results."""
    outcome = final_outcome(run)
    state = outcome.state if outcome is not None else states([run])[run.id].state
    head = {"run": run.id, "job": run.record["job"], "state": state.value, "directory": str(run.path)}
    if outcome is not None and state is RunState.FAILED:
        head["cause"] = outcome.cause
    return {**run.results(), **head}

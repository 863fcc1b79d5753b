"""Find runs, and say what each is doing, from its files and one question to each scheduler."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ropewalk.cluster.backends.base import BackendState
from ropewalk.cluster.backends.profiles import load_backend, profile_file, read_profiles
from ropewalk.cluster.errors import ConfigError, DamagedFileError, RopewalkError
from ropewalk.cluster.run.directory import RunDir, runs_root
from ropewalk.cluster.run.files import read_json
from ropewalk.cluster.run.names import WANDB_ADDRESS
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.results.metrics import broken_lines, latest_metrics

log = logging.getLogger(__name__)

GONE = frozenset({"ended", "lost"})  # a backend's words for a run of which no process is left


def roots() -> list[Path]:
    """The directories that hold runs: this machine's, and those that clusters of the profile file name."""
    path = profile_file()
    profiles = read_profiles() if path and path.is_file() else {}
    named = [Path(p["runs"]).expanduser() for p in profiles.values() if isinstance(p, dict) and p.get("runs")]
    return list(dict.fromkeys([runs_root(), *named]))


def find_run(ref: str) -> RunDir:
    """The run that a user names, under any root: a directory, an id, the beginning of one, or `latest`. Raises ConfigError."""
    # a sweep's trials are newer than the sweep
    if ref == "latest" and (found := newest(all_runs(), lambda run: run.parent is None)):
        return found
    errors: list[ConfigError] = []
    for root in [root for root in roots() if root.is_dir()] or [runs_root()]:
        try:
            return RunDir.find(ref, root)
        except ConfigError as error:
            errors.append(error)
    if all_runs():
        raise errors[0]
    where = ", ".join(map(str, roots()))
    raise ConfigError(f"no run {ref!r}: there is none yet under {where}; `ropewalk run --help` says how to start one")


def all_runs() -> list[RunDir]:
    """Every run under every root, oldest first."""
    found = [RunDir.all(root) for root in roots()]
    if len(found) == 1:
        return found[0]
    runs = [run for runs in found for run in runs]
    return sorted(runs, key=lambda run: ((run.path / "run.yaml").stat().st_mtime_ns, run.id))


def newest(runs: Sequence[RunDir], wanted: Callable[[RunDir], bool]) -> RunDir | None:
    """The last of the runs that is wanted; one with a damaged file is passed over, and named in the log."""
    for run in reversed(runs):
        try:
            if wanted(run):
                return run
        except DamagedFileError as error:
            log.warning("passed over: %s", error)
    return None


def readable(runs: Sequence[RunDir]) -> list[RunDir]:
    """The runs without those of which a file is damaged; these are named in the log."""
    found = []
    for run in runs:
        try:
            final_outcome(run)
            summary(run, BackendState(state=RunState.UNKNOWN))
        except DamagedFileError as error:
            log.warning("left out: %s", error)
        else:
            found.append(run)
    return found


def final_outcome(run: RunDir) -> Outcome | None:
    """How the run ended, or None while another attempt may follow."""
    outcome = run.last_outcome()
    return outcome if outcome is not None and outcome.state.final else None


def is_final(run: RunDir) -> bool:
    """Whether the run is over: its newest attempt has an outcome after which no other attempt follows by itself."""
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
    nothing = BackendState(state=RunState.UNKNOWN, reason=f"the scheduler of {cluster} does not know the run")
    return {run.id: answers.get(run.id, nothing) for run in runs}


def summary(run: RunDir, state: BackendState) -> dict[str, Any]:
    """A row of `ps`, as plain values."""
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
        "progress": {key: progress.get(key) for key in ("stage", "done", "total", "unit", "words")} if progress else None,
        "directory": str(run.path),
        "wandb": wandb_address(run),
    }


def wandb_address(run: RunDir) -> str | None:
    """Where a person sees the run in W&B; None as long as nobody mirrors it there."""
    found = (read_json(run.path / WANDB_ADDRESS) or {}).get("address")
    return str(found) if found else None


def details(run: RunDir) -> dict[str, Any]:
    """What `show --json` prints of any job's run."""
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
    """An attempt as plain values. Without an outcome the newest has the run's state, and an older one was lost."""
    outcome, newest = run.outcome(number), run.attempts()[-1]
    if outcome is not None:
        now, cause = outcome.state, outcome.cause
    elif number == newest:
        now, cause = state.state, state.reason
    else:
        now, cause = RunState.UNKNOWN, "lost: its processes ended without an outcome"
    ended = {**vars(outcome), "state": outcome.state.value} if outcome else None
    return {**run.attempt_details(number), "outcome": ended, "state": now.value, "cause": cause}


def final_object(run: RunDir) -> dict[str, Any]:
    """What the last line of `run --json` holds: run, job, state, directory, and the job's own results."""
    outcome = final_outcome(run)
    state = outcome.state if outcome is not None else states([run])[run.id].state
    head = {"run": run.id, "job": run.record["job"], "state": state.value, "directory": str(run.path)}
    if outcome is not None and state.failed:
        head["cause"] = outcome.cause
    return {**run.results(), **head}

"""Search for runs, and their states from files and one query per scheduler."""

import heapq
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ropewalk.cluster.backends.base import BackendState
from ropewalk.cluster.backends.profiles import load_backend, profile_file, read_profiles
from ropewalk.cluster.errors import ConfigError, DamagedFileError, RopewalkError
from ropewalk.cluster.run.directory import RunDir, runs_root
from ropewalk.cluster.run.disk import disk_bytes
from ropewalk.cluster.run.files import read_json
from ropewalk.cluster.run.moves import departed_to
from ropewalk.cluster.run.names import RECORD, WANDB_ADDRESS
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.registry import view_class
from ropewalk.jobs.results.goodput import Goodput, goodput_of
from ropewalk.jobs.results.metrics import broken_lines, latest_metrics
from ropewalk.jobs.runs.show.hangs import join_hangs
from ropewalk.jobs.runs.show.stragglers import stragglers

log = logging.getLogger(__name__)

GONE = frozenset({"ended", "lost"})  # values of `BackendState.word` for a run without processes


def roots() -> list[Path]:
    """Return the directories of runs: the default one, and those in the profile file."""
    path = profile_file()
    profiles = read_profiles() if path and path.is_file() else {}
    configured = [Path(p["runs"]).expanduser() for p in profiles.values() if _has_runs_here(p)]
    return list(dict.fromkeys([runs_root(), *configured]))


def _has_runs_here(profile: Any) -> bool:
    return isinstance(profile, dict) and bool(profile.get("runs")) and not profile.get("host")  # else on a login node


def find_run(ref: str) -> RunDir:
    """Find a run under any root by its directory, id, a prefix of its id, or `latest`. Raises ConfigError."""
    # not a sweep's trials, which are newer than the sweep
    if ref == "latest" and (latest := newest(newest_first(), lambda run: run.parent is None)):
        return latest
    errors: list[ConfigError] = []
    for root in [root for root in roots() if root.is_dir()] or [runs_root()]:
        try:
            run = RunDir.find(ref, root)
        except ConfigError as error:
            errors.append(error)
        else:
            return run if (Path(ref) / RECORD).is_file() else _newest_place(run)
    if any(True for _ in newest_first()):
        raise errors[0]
    folders = ", ".join(map(str, roots()))
    raise ConfigError(f"no run {ref!r}: there are no runs yet under {folders}; see `ropewalk run --help`")


def _newest_place(run: RunDir) -> RunDir:
    """Return a run under the root where it is now, if it has moved from one root of this machine to another."""
    others = [RunDir(root / run.id) for root in roots() if root != run.path.parent and (root / run.id / RECORD).is_file()]
    return max([run, *others], key=_progress) if others else run


def _progress(run: RunDir) -> tuple[list[int], bool]:
    """Return what is greater for the later place of a run; the place that it leaves is the later one until it has started."""
    return run.attempts()[-1:], departed_to(run) != run.record.get("cluster")


def _is_here(run: RunDir) -> bool:
    """Return False for a run that is under another root of this machine now."""
    return _newest_place(run).path == run.path


def all_runs() -> list[RunDir]:
    """Return every run under every root, oldest first."""
    by_root = [RunDir.all(root) for root in roots()]
    if len(by_root) == 1:
        return by_root[0]
    return sorted(filter(_is_here, (run for runs in by_root for run in runs)), key=_age)


def newest_first() -> Iterator[RunDir]:
    """Yield every run under every root, newest first; see `RunDir.newest_first`."""
    by_root = [RunDir.newest_first(root) for root in roots()]
    return by_root[0] if len(by_root) == 1 else filter(_is_here, heapq.merge(*by_root, key=_age, reverse=True))


def _age(run: RunDir) -> tuple[int, str]:
    return (run.path / "run.yaml").stat().st_mtime_ns, run.id


def newest(runs: Iterable[RunDir], wanted: Callable[[RunDir], bool]) -> RunDir | None:
    """Return the first run for which `wanted` holds, or None. Runs with damaged files are skipped with a warning."""
    for run in runs:
        try:
            if wanted(run):
                return run
        except DamagedFileError as error:
            log.warning("skipped: %s", error)
    return None


def readable(runs: Sequence[RunDir]) -> list[RunDir]:
    """Return the runs without damaged files; the others are named in warnings."""
    intact = []
    for run in runs:
        try:
            final_outcome(run)
            summary(run, BackendState(state=RunState.UNKNOWN))
        except DamagedFileError as error:
            log.warning("left out: %s", error)
        else:
            intact.append(run)
    return intact


def final_outcome(run: RunDir, attempts: Sequence[int] | None = None) -> Outcome | None:
    """Return the outcome of a run that has ended for good, or None while another attempt may follow.

    `attempts`: the run's attempts, if the caller has listed them.
    """
    attempts = run.attempts() if attempts is None else attempts
    outcome = run.outcome(attempts[-1]) if attempts else None
    return outcome if outcome is not None and outcome.state.final else None


def is_final(run: RunDir) -> bool:
    """Return True if the run has ended for good: no further attempt follows automatically."""
    return final_outcome(run) is not None


def states(runs: Sequence[RunDir], outcomes: Mapping[str, Outcome | None] | None = None) -> dict[str, BackendState]:
    """Return the state of each run by id, with one query per scheduler for the runs that have not ended.

    `outcomes`: each run's `final_outcome`, if the caller has read them already.
    """
    by_id: dict[str, BackendState] = {}
    open_runs: dict[str, list[RunDir]] = {}
    for run in runs:
        outcome = final_outcome(run) if outcomes is None else outcomes[run.id]
        if outcome is not None:
            by_id[run.id] = BackendState(state=outcome.state, reason=outcome.cause)
        else:
            open_runs.setdefault(str(run.record.get("cluster", "local")), []).append(run)
    for cluster, mine in open_runs.items():
        by_id.update(_query(cluster, mine))
    return by_id


def settle(run: RunDir) -> BackendState:
    """Return the state of a run, and first record an outcome that only the scheduler knows. For callers that act on the run."""
    if (outcome := final_outcome(run)) is not None:
        return BackendState(state=outcome.state, reason=outcome.cause)
    return _query(str(run.record.get("cluster", "local")), [run], settled=True)[run.id]


def _query(cluster: str, runs: Sequence[RunDir], *, settled: bool = False) -> Mapping[str, BackendState]:
    try:
        backend = load_backend(cluster)
        answers = dict(backend.settle(runs) if settled else backend.states(runs))
    except RopewalkError as error:
        return {run.id: BackendState(state=RunState.UNKNOWN, reason=str(error)) for run in runs}
    unknown = BackendState(state=RunState.UNKNOWN, reason=f"the scheduler of {cluster} does not know the run")
    return {run.id: answers.get(run.id, unknown) for run in runs}


def summary(run: RunDir, state: BackendState, attempts: Sequence[int] | None = None) -> dict[str, Any]:
    """Return a row of `ps` as plain values. `attempts`: the run's attempts, if the caller has listed them."""
    record = run.record
    steps = (record.get("config") or {}).get("steps")
    attempts = run.attempts() if attempts is None else attempts
    has_started = state.state is not RunState.PENDING or len(attempts) > 1
    metrics = latest_metrics(run, {"step", "train/loss"}) if has_started else {}
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
        "steps": steps if isinstance(steps, int) else None,  # those of a pipeline are other runs
        "loss": metrics.get("train/loss"),
        "result": _result_words(run) if state.state in {RunState.SUCCEEDED, RunState.REFUSED} else "",
        "progress": {key: progress.get(key) for key in ("stage", "done", "total", "unit", "words")} if progress else None,
        "directory": str(run.path),
        "wandb": wandb_address(run) if has_started else None,
    }


def run_goodput(run: RunDir) -> Goodput:
    """Return where the time of a run went."""
    return goodput_of(run, trains=bool(_view_class(str(run.record.get("job"))).trains))


def _result_words(run: RunDir) -> str:
    return str(_view_class(str(run.record.get("job")))(run).result_words())


_view_class = cache(view_class)  # the job of a package is looked up in all that are installed


def wandb_address(run: RunDir) -> str | None:
    """Return the address of the run's W&B page, or None if the run is not mirrored there."""
    address = (read_json(run.path / WANDB_ADDRESS) or {}).get("address")
    return str(address) if address else None


def details(run: RunDir) -> dict[str, Any]:
    """Return the content of `show --json` that all jobs share."""
    state = states([run])[run.id]
    record = run.record
    attempts = [_attempt(run, number, state) for number in run.attempts()]
    return {
        **summary(run, state),
        "results": run.results(),
        "metrics": latest_metrics(run),
        "goodput": run_goodput(run).plain(),
        "stragglers": [] if state.state.final else stragglers(run),
        "attempt_list": attempts,
        "config": record.get("config"),
        "resources": record.get("resources"),
        "code": record.get("code"),
        "versions": record.get("versions"),
        "command": record.get("command"),
        "events": join_hangs(run.read_events())[-50:],  # all nodes record a hang: joined, it has all ranks
        "broken_lines": broken_lines(run),
        "bytes": disk_bytes(run.path),
    }


def _attempt(run: RunDir, number: int, state: BackendState) -> dict[str, Any]:
    """Return an attempt as plain values. Without an outcome the newest one has the run's state, and an older one was lost."""
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
    """Return the object in the last line of `run --json`: run, job, state, directory, and the results of the job."""
    outcome = final_outcome(run)
    state = outcome.state if outcome is not None else states([run])[run.id].state
    head = {"run": run.id, "job": run.record["job"], "state": state.value, "directory": str(run.path)}
    if outcome is not None and state.failed:
        head["cause"] = outcome.cause
    return {**run.results(), **head}

"""Start locks of sibling runs on one cluster: which runs ask for theirs, and who gets it."""

from collections.abc import Mapping, Sequence
from contextlib import suppress

from ropewalk.cluster.backends.profiles import load_backend
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.siblings import GRANTED, REQUESTED, START_LOCK
from ropewalk.jobs.runs.show.cancel import cancel_runs
from ropewalk.jobs.runs.show.status import find_run, states


def start_locks(cluster: str, holders: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    """Tell runs of a cluster which sibling may start, if that is decided, and return the state of each run.

    `holders`: by run, cluster and run that may start; empty while that is open. States: `requested`, the time since which it has
    nodes and asks, or 0; `settled`, it has started, has ended, or is gone. A repetition does no harm. Raises RopewalkError.
    """
    backend, runs = load_backend(cluster), list[RunDir]()
    for ref in holders:
        with suppress(ConfigError):  # it was removed
            runs.append(find_run(ref))
    if not backend.shares_files:
        for run in runs:
            backend.sync(run)
    answers = {ref: {"requested": 0.0, "settled": True} for ref in holders} | _states(runs)
    waiting = [run for run in runs if holders[run.id] and not answers[run.id]["settled"]]
    for run in waiting:
        run.requests.put(START_LOCK, holders[run.id])
        if holders[run.id][0] != cluster:
            run.request_cancel()  # in the same file: a volume's copy would replace a request that is only here
        if not backend.shares_files:
            backend.sync(run, write={run.requests.path.name: run.requests.path.read_text()})
    list(cancel_runs([run.id for run in waiting if holders[run.id][0] != cluster]))
    return answers


def _states(runs: list[RunDir]) -> dict[str, dict[str, float]]:
    ended = {run: state.state.final for run, state in states(runs).items()}
    answers = {}
    for run in runs:
        times = {event["event"]: float(event["time"]) for event in run.read_events()}
        requested = 0.0 if ended[run.id] else times.get(REQUESTED, 0.0)
        answers[run.id] = {"requested": requested, "settled": ended[run.id] or GRANTED in times}
    return answers

"""Causes for which the owner of a run is notified."""

from collections.abc import Iterator

from ropewalk.cluster.errors import EXIT_FAILED, EXIT_NEVER_RETRY
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.runs.notify.alerts import alerts
from ropewalk.jobs.runs.notify.config import Kind
from ropewalk.jobs.runs.notify.outbox import Message, message
from ropewalk.jobs.runs.show.events import format_event
from ropewalk.jobs.runs.show.view import view_of

FIRST_PREEMPTIONS = 3  # notified at this number of preemptions, and at each doubling


def causes(run: RunDir, ending: Outcome | None) -> Iterator[Message]:
    """Yield all causes of a run so far. `ending`: its final outcome as far as this process can know it, or None."""
    for event in run.read_events():
        if event["event"] in ("ranks_hung", "ranks_slow", "straggler"):
            kind: Kind = "hung" if event["event"] == "ranks_hung" else "slow"
            title = "a slow rank" if event["event"] == "straggler" else f"ranks {kind}"
            text = f"{format_event(event)}\n`ropewalk why {run.id}` has more details."
            key = f"{event['event']}-{event.get('attempt')}-{event.get('group')}-{event.get('step')}"
            yield message(run.id, kind, key, f"{title}: {run.id}", text)
    yield from _preemptions(run)
    if ending is not None and ending.state is RunState.SUCCEEDED:
        text = _with_children(run, f"{run.id} has finished. `ropewalk show {run.id}` shows its results.")
        yield message(run.id, "succeeded", f"over-{run.attempts()[-1]}", f"finished: {run.id}", text)
    elif ending is not None and ending.state.failed:
        alert = next(alert for alert in alerts(run, ending) if alert.key.startswith("failed-"))
        gave_up = ending.exit_code not in (EXIT_FAILED, EXIT_NEVER_RETRY)
        text = _with_children(run, alert.text)
        yield message(run.id, "gave_up" if gave_up else "failed", alert.key, alert.title, text)


def _preemptions(run: RunDir) -> Iterator[Message]:
    outcomes = [run.outcome(number) for number in run.attempts()]
    number = sum(outcome is not None and outcome.state is RunState.PREEMPTED for outcome in outcomes)
    reached = FIRST_PREEMPTIONS
    while reached <= number:
        text = f"{run.id} was preempted {reached} times, and goes on each time. Another partition or QoS may suit it better."
        yield message(run.id, "preempted_too_often", f"preempted-{reached}", f"preempted {reached} times: {run.id}", text)
        reached *= 2


def _with_children(run: RunDir, text: str) -> str:
    """Add how the runs that this one started have ended, such as a sweep's trials, which are not notified by themselves."""
    outcomes = [child.last_outcome() for child in view_of(run).children()]
    if not outcomes:
        return text
    failed = sum(outcome is not None and outcome.state.failed for outcome in outcomes)
    return f"{text}\nOf {len(outcomes)} runs that it started, {failed} failed."

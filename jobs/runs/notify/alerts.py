"""Alerts for the owner of a run: one per cause, with the diagnosis of `why`."""

from collections.abc import Iterator
from typing import NamedTuple

from ropewalk.cluster.backends.base import BackendState
from ropewalk.cluster.errors import EXIT_DONE, EXIT_FAILED, EXIT_NEVER_RETRY, EXIT_REQUEUE, EXIT_TERMINATED
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.cluster.run.mistakes import repeats_mistake
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.cluster.supervise.supervisor import count_spent_retries
from ropewalk.jobs.runs.show.diagnose import diagnose
from ropewalk.jobs.runs.show.events import format_event
from ropewalk.jobs.runs.show.view import view_of

_TITLES = {
    "ranks_hung": "ranks hung",
    "early_stop": "stopped early",
    "straggler": "a slow rank",
    "gpus_idle": "idle GPUs",
}  # events that cause an alert while the run goes on


class Alert(NamedTuple):
    """An alert that is sent once."""

    key: str  # identifies the cause; a second alert with the same key is not sent
    title: str
    text: str
    serious: bool


def alerts(run: RunDir, ending: Outcome | None) -> list[Alert]:
    """Return all alerts of a run so far. `ending`: its final outcome as far as this process can know it, or None."""
    all_alerts = list(_events(run))
    if ending is not None and ending.state.failed:
        all_alerts.append(_failure(run, ending))
    elif ending is not None and ending.state is RunState.SUCCEEDED and view_of(run).children():
        text = f"{run.id} has finished. `ropewalk show {run.id}` shows its results."
        all_alerts.append(Alert("over", f"{run.record['job']} finished: {run.id}", text, serious=False))
    return all_alerts


def _events(run: RunDir) -> Iterator[Alert]:
    for event in run.read_events():
        title = _TITLES.get(event["event"])
        if title is not None:
            text = f"{format_event(event)}\n`ropewalk why {run.id}` has more details."
            key, serious = f"{event['event']}-{event.get('step')}", event["event"] != "early_stop"
            yield Alert(key, f"{title}: {run.id}", text, serious)


def _failure(run: RunDir, ending: Outcome) -> Alert:
    """Return the alert for the failure of a run."""
    attempt = (run.attempts() or [0])[-1]
    diagnosis = diagnose(run, BackendState(state=RunState.FAILED, reason=ending.cause))
    remedy = f"What to do: {diagnosis.remedy}" if diagnosis.remedy else ""
    text = "\n".join(part for part in (diagnosis.cause, remedy, f"`ropewalk why {run.id}`") if part)
    return Alert(f"failed-{attempt}", f"{_what_failed(run, ending)}: {run.id}", text, serious=True)


def _what_failed(run: RunDir, ending: Outcome) -> str:
    stopped = [event for event in run.read_events() if event["event"] == "anomaly" and event.get("policy") == "stop"]
    if stopped and ending.exit_code == EXIT_NEVER_RETRY:
        return "stopped by an anomaly"
    if (run.results().get("gate") or {}).get("passed") is False:
        return "gate failed"
    if ending.exit_code == EXIT_NEVER_RETRY:
        return "failed, and is not retried"
    if ending.exit_code != EXIT_FAILED and count_spent_retries(run)[1] >= run.retries.disturbances:
        return "out of retries after disturbances"
    return "failed"


def likely_ending(run: RunDir, attempt: int) -> Outcome | None:
    """Predict the final outcome of a run from its first agent's report, before the outcome is recorded; None if it goes on."""
    if (outcome := run.outcome(attempt)) is not None:
        return outcome if outcome.state.final else None
    node = read_json(run.attempt_dir(attempt) / "nodes" / "node-0.json")
    code = int(node["exit_code"]) if node else EXIT_TERMINATED
    may_retry = count_spent_retries(run)[0] < run.retries.bugs and not repeats_mistake(run, attempt)
    if code in (EXIT_REQUEUE, EXIT_TERMINATED) or (code == EXIT_FAILED and may_retry):
        return None
    errors = run.read_errors(attempt)
    cause = f"{errors[0]['who']}: {errors[0]['type']}: {errors[0]['message']}" if errors else f"exit code {code}"
    return Outcome(state=RunState.SUCCEEDED if code == EXIT_DONE else RunState.FAILED, exit_code=code, cause=cause)

"""What the owner of a run is told at once: one alert a cause, with the words of `why`."""

from collections.abc import Iterator
from typing import NamedTuple

from ropewalk.cluster.backends.base import BackendState
from ropewalk.cluster.errors import EXIT_DONE, EXIT_FAILED, EXIT_NEVER_RETRY, EXIT_REQUEUE, EXIT_TERMINATED
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.cluster.supervise.supervisor import count_spent_retries
from ropewalk.jobs.runs.show.diagnose import diagnose
from ropewalk.jobs.runs.show.events import tell
from ropewalk.jobs.runs.show.view import view_of

_TITLES = {"ranks_hung": "ranks hung", "early_stop": "stopped early"}  # events that are told while the run goes on


class Alert(NamedTuple):
    """Something to tell, once."""

    key: str  # the cause: what was told under this key is not told again
    title: str
    text: str
    serious: bool


def alerts(run: RunDir, ending: Outcome | None) -> list[Alert]:
    """Every alert of a run so far. `ending`: how it ended for good, as far as this process can know."""
    found = list(_events(run))
    if ending is not None and ending.state.failed:
        found.append(_failure(run, ending))
    elif ending is not None and ending.state is RunState.SUCCEEDED and view_of(run).children():
        text = f"{run.id} is over. `ropewalk show {run.id}` shows what it found."
        found.append(Alert("over", f"{run.record['job']} over: {run.id}", text, serious=False))
    return found


def _events(run: RunDir) -> Iterator[Alert]:
    for event in run.read_events():
        title = _TITLES.get(event["event"])
        if title is not None:
            text = f"{tell(event)}\n`ropewalk why {run.id}` tells more."
            key, serious = f"{event['event']}-{event.get('step')}", event["event"] != "early_stop"
            yield Alert(key, f"{title}: {run.id}", text, serious)


def _failure(run: RunDir, ending: Outcome) -> Alert:
    """One alert for the end of a run, whatever it ended of."""
    attempt = (run.attempts() or [0])[-1]
    why = diagnose(run, BackendState(state=RunState.FAILED, reason=ending.cause))
    text = "\n".join(part for part in (why.cause, why.remedy and f"What to do: {why.remedy}", f"`ropewalk why {run.id}`") if part)
    return Alert(f"failed-{attempt}", f"{_what_failed(run, ending)}: {run.id}", text, serious=True)


def _what_failed(run: RunDir, ending: Outcome) -> str:
    stopped = [event for event in run.read_events() if event["event"] == "anomaly" and event.get("policy") == "stop"]
    if stopped and ending.exit_code == EXIT_NEVER_RETRY:
        return "stopped by an anomaly"
    if (run.results().get("gate") or {}).get("passed") is False:
        return "gate failed"
    if ending.exit_code == EXIT_NEVER_RETRY:
        return "failed, and is not tried again"
    if ending.exit_code != EXIT_FAILED and count_spent_retries(run)[1] >= run.retries.disturbances:
        return "out of retries after disturbances"
    return "failed"


def likely_ending(run: RunDir, attempt: int) -> Outcome | None:
    """How a run ends with this attempt, told by its own first agent before anybody has concluded it; None if it goes on."""
    if (outcome := run.outcome(attempt)) is not None:
        return outcome if outcome.state.final else None
    node = read_json(run.attempt_dir(attempt) / "nodes" / "node-0.json")
    code = int(node["exit_code"]) if node else EXIT_TERMINATED
    if code in (EXIT_REQUEUE, EXIT_TERMINATED) or (code == EXIT_FAILED and count_spent_retries(run)[0] < run.retries.bugs):
        return None
    errors = run.read_errors(attempt)
    cause = f"{errors[0]['who']}: {errors[0]['type']}: {errors[0]['message']}" if errors else f"exit code {code}"
    return Outcome(state=RunState.SUCCEEDED if code == EXIT_DONE else RunState.FAILED, exit_code=code, cause=cause)

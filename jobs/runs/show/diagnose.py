"""Diagnosis of a run for `ropewalk why`: cause, evidence, remedy."""

import re
import signal
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ropewalk.cluster.backends.base import BackendState
from ropewalk.cluster.backends.profiles import backend_of
from ropewalk.cluster.backends.recovery import has_agents
from ropewalk.cluster.backends.submission import Condition, dependencies
from ropewalk.cluster.errors import EXIT_FAILED, EXIT_LOST_PEER, EXIT_NEVER_RETRY
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.cluster.run.moves import moved_to
from ropewalk.cluster.run.siblings import awaits_start_lock, sibling_elsewhere
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.results.metrics import broken_lines, broken_words, latest_metrics
from ropewalk.jobs.runs.show.events import SIGNALS, format_event, without_cause
from ropewalk.jobs.runs.show.hangs import describe_activities, join_hangs
from ropewalk.jobs.runs.show.known_errors.table import known_error
from ropewalk.jobs.runs.show.status import states
from ropewalk.jobs.runs.show.stragglers import describe_stragglers, stragglers
from ropewalk.jobs.runs.show.view import view_of

if TYPE_CHECKING:
    from rich.console import RenderableType

SILENT_SECONDS = 30.0  # six missing samples of a node


@dataclass
class Diagnosis:
    """Result of a diagnosis."""

    cause: str
    evidence: list[str] = field(default_factory=list)
    remedy: str = ""
    command: list[str] | None = None  # the remedy, if it is a command that can be run as it stands
    resumes: bool = False  # the remedy is to resume the run

    def plain(self) -> dict[str, Any]:
        """Return cause, evidence and remedy as plain values for JSON."""
        return {"cause": self.cause, "evidence": self.evidence, "remedy": {"text": self.remedy, "command": self.command}}


def diagnose(run: RunDir, state: BackendState) -> Diagnosis:
    """Diagnose a run from the outcome, errors, node samples and events of its newest attempt, and the view of its job."""
    diagnosis = _diagnose(run, state)
    if broken := broken_words(broken_lines(run)):
        diagnosis.evidence.append(broken)
    explanation = view_of(run).explain()
    diagnosis.evidence = [*explanation, *diagnosis.evidence]
    remedies = (f"{meaning}: {remedy}" for line in explanation for meaning, remedy in [_look_up(line)] if meaning)
    diagnosis.remedy = diagnosis.remedy or next(remedies, "")
    if run.parent is not None and (role := view_of(run.parent).explain_child(run)):
        diagnosis.cause = f"{diagnosis.cause} {role}"
        if diagnosis.resumes:
            diagnosis.remedy, diagnosis.command = "", None  # the parent decides whether the run is resumed
    return diagnosis


def _diagnose(run: RunDir, state: BackendState) -> Diagnosis:
    attempts = run.attempts()
    if not attempts:
        return _never_started(run, state)
    attempt = attempts[-1]
    outcome = run.outcome(attempt)
    history = _history(run)
    if state.state.final and (outcome is None or not outcome.state.final):  # only the scheduler knows the outcome
        outcome = Outcome(state=state.state, exit_code=EXIT_FAILED, cause=state.reason, ended=time.time())
    if outcome is None:
        return _unfinished(run, attempt, state, history)
    if outcome.state is RunState.SUCCEEDED:
        return Diagnosis(cause="It succeeded.", evidence=history)
    if outcome.state is RunState.CANCELLED and (cluster := moved_to(run)):
        return Diagnosis(cause=f"It has {outcome.cause}.", evidence=history, remedy=f"`ropewalk why {run.id} --on {cluster}`")
    if outcome.state is RunState.CANCELLED and (sibling := sibling_elsewhere(run)):
        cause = f"{sibling.run} has started on {sibling.cluster} instead."
        remedy = f"`ropewalk why {sibling.run} --on {sibling.cluster}`"
        return Diagnosis(cause=cause, evidence=without_cause(history, outcome.cause), remedy=remedy)
    if outcome.state is RunState.CANCELLED:
        remedy = f"`ropewalk resume {run.id}` {view_of(run).resume_words()}"
        cause = f"It was {outcome.cause}." if outcome.cause.startswith("cancelled") else f"It was cancelled: {outcome.cause}."
        evidence = without_cause(history, outcome.cause)
        return Diagnosis(cause=cause, evidence=evidence, remedy=remedy, command=_resume(run), resumes=True)
    if outcome.state is RunState.REFUSED:
        remedy = "its report has all figures; improve the model, or change `require`, and submit again"
        return Diagnosis(cause=f"It finished, but did not pass its gate: {outcome.cause}.", evidence=history, remedy=remedy)
    if not outcome.state.final:
        next_step = state.reason or "a new attempt follows automatically"
        return Diagnosis(cause=f"Attempt {attempt} ended without finishing: {outcome.cause}; {next_step}.", evidence=history)
    return _failed(run, attempt, outcome.cause, outcome.exit_code, history)


def _never_started(run: RunDir, state: BackendState) -> Diagnosis:
    refused = [event for event in run.read_events() if event["event"] == "submit_failed"]
    if refused:
        remedy = f"fix that, then `ropewalk resume {run.id}`"
        return Diagnosis(cause=f"It was never started: {refused[-1]['error']}", remedy=remedy, resumes=True)
    detail = f" ({state.word}{': ' if state.word and state.reason else ''}{state.reason})" if state.word or state.reason else ""
    return Diagnosis(cause=f"It has not started yet: {state.state.value}{detail}.")


def _unfinished(run: RunDir, attempt: int, state: BackendState, history: list[str]) -> Diagnosis:
    if state.state is RunState.UNKNOWN:
        remedy = state.remedy or f"`ropewalk resume {run.id}` starts a new attempt"
        reason = state.reason.removesuffix(state.remedy).removesuffix("; ") or "the reason is unknown"
        cause = f"Its process is gone: {reason}."
        return Diagnosis(cause=cause, evidence=history, remedy=remedy, command=_resume(run), resumes=True)
    if state.state in {RunState.PENDING, RunState.REQUEUED}:
        return _waiting(run, state, history)
    if awaits_start_lock(run):
        cause = "It has nodes, and waits until `ropewalk sync --follow` lets it or a sibling start."
        return Diagnosis(cause=cause, evidence=history)
    silent = silent_nodes(run, attempt)
    if silent:
        return Diagnosis(
            cause=f"It is running, but {', '.join(silent)}.",
            evidence=history,
            remedy="see `ropewalk logs` of that node",
            command=["ropewalk", "logs", run.id],
        )
    progress = read_json(run.progress) or {}
    step = progress.get("done")
    of = f" of {progress['total']}" if progress.get("total") else ""
    amount = progress.get("words") or ("" if step is None else f"{step}{of} {progress.get('unit') or ''}".rstrip())
    at = f": {progress['stage']} {amount}" if amount else ""
    slow = _slow_ranks(run, attempt, step)
    if not slow and (ranks := stragglers(run)):
        remedy = f"`ropewalk profile {run.id}` shows what the ranks do; if it is the machine, leave its node out"
        cause = f"It is {state.state.value.lower()}{at}, but {describe_stragglers(ranks)}."
        return Diagnosis(cause=cause, evidence=history, remedy=remedy, command=["ropewalk", "profile", run.id])
    return Diagnosis(cause=f"It is {state.state.value.lower()}{at}{f', but {slow}' if slow else ''}.", evidence=history)


def _slow_ranks(run: RunDir, attempt: int, step: Any) -> str:
    """Describe the slow ranks if the group still works on the step at which they were reported, else return nothing."""
    events = [event for event in run.read_events() if event.get("attempt") == attempt]
    newest = max((number for number, event in enumerate(events) if event["event"] in ("group_formed", "ranks_hung")), default=0)
    slow = [event for event in events[newest:] if event["event"] == "ranks_slow" and event["step"] >= (step or 0)]
    return ", ".join(f"on node {event['node']} {describe_activities(event['ranks'])}" for event in slow)


def _waiting(run: RunDir, state: BackendState, history: list[str]) -> Diagnosis:
    """Explain a run that has not started by its open dependencies, else by the scheduler's reason."""
    others = {other.run.id: other for other in dependencies(run) if (other.run.path / "run.yaml").exists()}
    other_states = {} if has_agents(run) else states([other.run for other in others.values()])
    pending = {
        name: other
        for name, other in other_states.items()
        if not other.state.final or not others[name].condition.holds(other.state)
    }
    if not pending:
        detail = ": ".join(part for part in (state.word, state.reason) if part)
        waiting = backend_of(run).explain_waiting(run)
        cause = f"It is {state.state.value.lower()}{f' ({detail})' if detail else ''}."
        return Diagnosis(cause=cause, evidence=[*waiting.lines, *history], remedy=waiting.remedy)
    names = " and for ".join(_describe_dependency(others[name].run, other) for name, other in pending.items())
    conditions = {others[name].condition for name in pending}
    if conditions == {Condition.OK}:
        subject = "that has" if len(pending) == 1 else "all of them have"
        follows = f"It starts once {subject} succeeded, and is cancelled if one fails or is cancelled."
    else:
        ends = [f"{name} {others[name].awaited_end}" for name in pending]
        broken = "" if conditions == {Condition.ANY} else ", and is cancelled if one ends otherwise"
        follows = f"It starts once {' and '.join(ends)}{broken}."
    cause = f"It waits for {names}. {follows}"
    stuck = [name for name, other in pending.items() if other.state is RunState.UNKNOWN or other.remedy]
    if stuck:
        remedy = f"`ropewalk resume {stuck[0]}`: no process is running it, and this run waits for its end"
        return Diagnosis(cause=cause, evidence=history, remedy=remedy, command=_resume(others[stuck[0]].run))
    other = next(iter(pending))
    remedy = f"`ropewalk why {other}` has more details"
    return Diagnosis(cause=cause, evidence=history, remedy=remedy, command=["ropewalk", "why", other])


def _describe_dependency(other: RunDir, state: BackendState) -> str:
    outcome, done = other.last_outcome(), latest_metrics(other).get("step")
    if outcome is not None and outcome.state.final:
        return f"{other.id}, which ended as {outcome.state} ({outcome.cause})"
    return f"{other.id}, which is {state.state}{f' at step {done}' if done is not None else ''}"


def _failed(run: RunDir, attempt: int, cause: str, exit_code: int, history: list[str]) -> Diagnosis:
    errors = run.read_errors(attempt)
    evidence = [f"{e.get('who')}: {e.get('type')}: {e.get('message')}" for e in errors[:3]]
    evidence += _innermost_frame(errors[0]) if errors else []
    others = [f"{e.get('type')}: {e.get('message')}" for e in errors if e.get("exit_code") != EXIT_LOST_PEER]
    killed = re.search(r"\((SIG[A-Z]+)\)", cause)
    meaning, remedy = _look_up(cause, *others)
    if not meaning and killed and killed[1] in signal.Signals.__members__:
        meaning = SIGNALS.get(signal.Signals[killed[1]], "")
    if exit_code == EXIT_NEVER_RETRY and not remedy:
        remedy = "fix the configuration or the data and submit again; exit code 42 is never retried"
    if resumes := not remedy:
        remedy = f"`ropewalk logs {run.id}` shows all ranks; `ropewalk resume {run.id}` {view_of(run).resume_words()}"
    text = f"It failed: {meaning} — {cause}" if meaning else f"It failed: {cause}"
    evidence = [line for line in dict.fromkeys(evidence) if line not in cause]
    command = _resume(run) if resumes else None
    evidence += without_cause(history, cause)
    return Diagnosis(cause=text, evidence=evidence, remedy=remedy, command=command, resumes=resumes)


def _resume(run: RunDir) -> list[str]:
    return ["ropewalk", "resume", run.id]


def _look_up(*texts: str) -> tuple[str, str]:
    """Return the meaning and the remedy of a known error; empty strings for an unknown one."""
    row = known_error(*texts)
    return (row.meaning, row.remedy) if row else ("", "")


def _innermost_frame(error: dict[str, Any]) -> list[str]:
    """Return the innermost frame of a recorded traceback: file and line, and the line's code."""
    lines = [line.strip() for line in str(error.get("traceback", "")).splitlines()]
    last = max((i for i, line in enumerate(lines) if line.startswith("File ")), default=None)
    is_ours = last is not None and "/jobs/runs/program/verdict.py" in lines[last]  # the program printed no frames
    return [] if last is None or is_ours else lines[last : last + 2]


def silent_nodes(run: RunDir, attempt: int, now: float | None = None) -> list[str]:
    """Return a phrase for each node that no longer writes samples, but has not left the run."""
    folder, silent = run.attempt_dir(attempt) / "nodes", []
    for path in sorted(folder.glob("node-*.jsonl")):
        age_seconds = (now or time.time()) - path.stat().st_mtime
        if age_seconds > SILENT_SECONDS and not path.with_suffix(".json").exists():
            silent.append(f"{path.stem} has sent no sample for {age_seconds:.0f} s")
    return silent


def _history(run: RunDir) -> list[str]:
    """Return the run's newest events as lines for people."""
    return [text for event in join_hangs(run.read_events())[-200:] if (text := format_event(event)) is not None][-12:]


def diagnosis_page(run: RunDir, diagnosis: Diagnosis) -> "RenderableType":
    """Render the output of `why`."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text.assemble((run.id, "bold"), "  ", diagnosis.cause)]
    parts += [Text(f"  {line}", style="dim") for line in diagnosis.evidence]
    if diagnosis.remedy:
        parts.append(Text.assemble(("What to do: ", "bold"), diagnosis.remedy))
    return Group(*parts)

"""Why a run is in the state it is in: the cause in plain words, the evidence, and what to do."""

import re
import signal
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ropewalk.cluster.backends.base import BackendState
from ropewalk.cluster.backends.recovery import has_agents
from ropewalk.cluster.backends.submission import dependencies
from ropewalk.cluster.errors import EXIT_FAILED, EXIT_LOST_PEER, EXIT_NEVER_RETRY
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.results.metrics import broken_lines, broken_words, latest_metrics
from ropewalk.jobs.runs.show.events import SIGNALS, tell
from ropewalk.jobs.runs.show.hangs import join_hangs
from ropewalk.jobs.runs.show.known_errors.table import known_error
from ropewalk.jobs.runs.show.status import states
from ropewalk.jobs.runs.show.view import view_of

if TYPE_CHECKING:
    from rich.console import RenderableType

SILENT_SECONDS = 30.0  # six samples of a node missed


@dataclass
class Diagnosis:
    """What `why` prints."""

    cause: str
    evidence: list[str] = field(default_factory=list)
    remedy: str = ""
    resumes: bool = False  # the remedy is to resume the run


def diagnose(run: RunDir, state: BackendState) -> Diagnosis:
    """Read outcome.json, errors/*.json, node samples and events of the newest attempt, and what the run's own job says of it."""
    found = _diagnose(run, state)
    if broken := broken_words(broken_lines(run)):
        found.evidence.append(broken)
    told = view_of(run).explain()
    found.evidence = [*told, *found.evidence]
    found.remedy = found.remedy or next((f"{m}: {advice}" for line in told for m, advice in [_known(line)] if m), "")
    if run.parent is not None and (role := view_of(run.parent).explain_child(run)):
        found.cause = f"{found.cause} {role}"
        if found.resumes:
            found.remedy = ""  # its parent decides whether it is resumed
    return found


def _diagnose(run: RunDir, state: BackendState) -> Diagnosis:
    attempts = run.attempts()
    if not attempts:
        return _never_started(run, state)
    attempt = attempts[-1]
    outcome = run.outcome(attempt)
    history = _history(run)
    if state.state.final and (outcome is None or not outcome.state.final):  # so far only the scheduler knows
        outcome = Outcome(state=state.state, exit_code=EXIT_FAILED, cause=state.reason, ended=time.time())
    if outcome is None:
        return _unfinished(run, attempt, state, history)
    if outcome.state is RunState.SUCCEEDED:
        return Diagnosis(cause="It succeeded.", evidence=history)
    if outcome.state is RunState.CANCELLED:
        remedy = f"`ropewalk resume {run.id}` continues from its last checkpoint"
        return Diagnosis(cause=f"It was cancelled: {outcome.cause}.", evidence=history, remedy=remedy, resumes=True)
    if outcome.state is RunState.REFUSED:
        remedy = "its report has all figures; improve the model, or change `require`, and submit again"
        return Diagnosis(cause=f"It was done, and its gate refused: {outcome.cause}.", evidence=history, remedy=remedy)
    if not outcome.state.final:
        went = state.reason or "a new attempt follows by itself"
        return Diagnosis(cause=f"Attempt {attempt} ended without finishing: {outcome.cause}; {went}.", evidence=history)
    return _failed(run, attempt, outcome.cause, outcome.exit_code, history)


def _never_started(run: RunDir, state: BackendState) -> Diagnosis:
    refused = [event for event in run.read_events() if event["event"] == "submit_failed"]
    if refused:
        remedy = f"fix that, then `ropewalk resume {run.id}`"
        return Diagnosis(cause=f"It was never started: {refused[-1]['error']}", remedy=remedy, resumes=True)
    said = f" ({state.word}{': ' if state.word and state.reason else ''}{state.reason})" if state.word or state.reason else ""
    return Diagnosis(cause=f"It has not started yet: {state.state.value}{said}.")


def _unfinished(run: RunDir, attempt: int, state: BackendState, history: list[str]) -> Diagnosis:
    if state.state is RunState.UNKNOWN:
        remedy = state.remedy or f"`ropewalk resume {run.id}` starts a new attempt"
        said = state.reason.removesuffix(state.remedy).removesuffix("; ") or "no record of why"
        return Diagnosis(cause=f"Its process is gone: {said}.", evidence=history, remedy=remedy, resumes=True)
    if state.state in {RunState.PENDING, RunState.REQUEUED}:
        return _waiting(run, state, history)
    silent = silent_nodes(run, attempt)
    if silent:
        return Diagnosis(
            cause=f"It runs, but {', '.join(silent)}.", evidence=history, remedy="look at `ropewalk logs` of that node"
        )
    progress = read_json(run.progress) or {}
    step = progress.get("done")
    at = f": {progress['stage']} {progress['words']}" if progress.get("words") else f", at {step}" if step is not None else ""
    return Diagnosis(cause=f"It is {state.state.value.lower()}{at}.", evidence=history)


def _waiting(run: RunDir, state: BackendState, history: list[str]) -> Diagnosis:
    """Explain a run that has not started: which other runs it waits for, and what follows; else what the scheduler says."""
    others = {other.id: other for other in dependencies(run) if (other.path / "run.yaml").exists()}
    asked = {} if has_agents(run) else states([*others.values()])
    open_ones = {name: told for name, told in asked.items() if told.state is not RunState.SUCCEEDED}
    if not open_ones:
        said = ": ".join(word for word in (state.word, state.reason) if word)
        return Diagnosis(cause=f"It is {state.state.value.lower()}{f' ({said})' if said else ''}.", evidence=history)
    told = " and for ".join(_dependency_words(others[name], found) for name, found in open_ones.items())
    whose = "that has" if len(open_ones) == 1 else "all of them have"
    cause = f"It waits for {told}. It starts once {whose} succeeded, and is cancelled if one fails or is cancelled."
    stuck = [name for name, found in open_ones.items() if found.state is RunState.UNKNOWN or found.remedy]
    remedy = f"`ropewalk resume {stuck[0]}`: no process is running it, and this run waits until it has succeeded" if stuck else ""
    return Diagnosis(cause=cause, evidence=history, remedy=remedy or f"`ropewalk why {next(iter(open_ones))}` tells more of it")


def _dependency_words(other: RunDir, state: BackendState) -> str:
    outcome, done = other.last_outcome(), latest_metrics(other).get("step")
    if outcome is not None and outcome.state.final:
        return f"{other.id}, which ended as {outcome.state} ({outcome.cause})"
    return f"{other.id}, which is {state.state}{f' at step {done}' if done is not None else ''}"


def _failed(run: RunDir, attempt: int, cause: str, exit_code: int, history: list[str]) -> Diagnosis:
    errors = run.read_errors(attempt)
    evidence = [f"{e.get('who')}: {e.get('type')}: {e.get('message')}" for e in errors[:3]]
    evidence += _place_of(errors[0]) if errors else []
    others = [f"{e.get('type')}: {e.get('message')}" for e in errors if e.get("exit_code") != EXIT_LOST_PEER]
    killed = re.search(r"\((SIG[A-Z]+)\)", cause)
    meaning, remedy = _known(cause, *others)
    if not meaning and killed and killed[1] in signal.Signals.__members__:
        meaning = SIGNALS.get(signal.Signals[killed[1]], "")
    if exit_code == EXIT_NEVER_RETRY and not remedy:
        remedy = "fix the configuration or the data and submit again; exit code 42 is never retried"
    if resumes := not remedy:
        remedy = f"`ropewalk logs {run.id}` shows all ranks; `ropewalk resume {run.id}` tries again from the last checkpoint"
    told = f"It failed: {meaning} — {cause}" if meaning else f"It failed: {cause}"
    return Diagnosis(cause=told, evidence=[*dict.fromkeys(evidence), *history], remedy=remedy, resumes=resumes)


def _known(*texts: str) -> tuple[str, str]:
    """What an error means and what to do about it; empty where it is not a known one."""
    known = known_error(*texts)
    return (known.meaning, known.remedy) if known else ("", "")


def _place_of(error: dict[str, Any]) -> list[str]:
    """The innermost frame of a recorded traceback: file and line, and the code there."""
    lines = [line.strip() for line in str(error.get("traceback", "")).splitlines()]
    last = max((i for i, line in enumerate(lines) if line.startswith("File ")), default=None)
    ours = last is not None and "/jobs/runs/program/verdict.py" in lines[last]  # a program that printed no frames
    return [] if last is None or ours else lines[last : last + 2]


def silent_nodes(run: RunDir, attempt: int, now: float | None = None) -> list[str]:
    """Nodes that write no samples any more though they have not left the run."""
    folder, found = run.attempt_dir(attempt) / "nodes", []
    for path in sorted(folder.glob("node-*.jsonl")):
        age_seconds = (now or time.time()) - path.stat().st_mtime
        if age_seconds > SILENT_SECONDS and not path.with_suffix(".json").exists():
            found.append(f"{path.stem} has said nothing for {age_seconds:.0f} s")
    return found


def _history(run: RunDir) -> list[str]:
    """The newest of the run's events that are shown, one line each."""
    return [text for event in join_hangs(run.read_events()[-200:]) if (text := tell(event)) is not None][-12:]


def diagnosis_page(run: RunDir, found: Diagnosis) -> "RenderableType":
    """What `why` prints."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text.assemble((run.id, "bold"), "  ", found.cause)]
    parts += [Text(f"  {line}", style="dim") for line in found.evidence]
    if found.remedy:
        parts.append(Text.assemble(("What to do: ", "bold"), found.remedy))
    return Group(*parts)

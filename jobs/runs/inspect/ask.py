"""Send a request to a live run and wait for the answers of its agents or ranks."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from ropewalk.cluster.errors import BackendError, ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.file_systems import poll_seconds
from ropewalk.cluster.run.files import parse_lines
from ropewalk.cluster.run.inspections import InspectionRequest, Kind, request_inspection
from ropewalk.cluster.run.names import AGENTS, NODES
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.runs.show.remote import Copy, write_to_original
from ropewalk.jobs.runs.show.status import final_outcome, states
from ropewalk.jobs.runs.show.view import view_of

STACKS_SECONDS = 15.0  # for agents on a busy machine, after they have seen the request
LOOK_SECONDS = 0.1
Say = Callable[[str], None]


@dataclass(frozen=True)
class Answers:
    """Answers to a request by the number of the node or rank, and the numbers of those that did not answer."""

    request: InspectionRequest
    folder: Path
    by_number: Mapping[int, Mapping[str, Any]]
    missing: list[int] = field(default_factory=list)
    reason: str = ""  # for which some are missing


def ask_agents(run: RunDir) -> Answers:
    """Ask every agent of a live run for the stacks of its processes. Raises ConfigError if the run is not live, BackendError."""
    request, copy = _send(run, "stacks"), Copy(run)
    folder = request.folder(run)
    deadline = time.monotonic() + STACKS_SECONDS + 5 * poll_seconds(run.path)
    while True:
        if copy.is_remote:
            copy.freshen()
        nodes = _live_nodes(run, request.attempt)
        answers = _read(folder, "node", nodes)
        missing = [node for node in nodes if node not in answers]
        if not missing or time.monotonic() > deadline:
            break
        time.sleep(LOOK_SECONDS)
    if not answers:
        raise BackendError(f"{run.id}: no agent answered; `ropewalk why {run.id}` may name the reason")
    return Answers(request, folder, answers, missing, f"no answer within {STACKS_SECONDS:.0f} s" if missing else "")


def ask_ranks(run: RunDir, kind: Kind, steps: int, say: Say) -> Answers:
    """Ask all ranks of a run that trains, and wait for them as long as it goes on. Raises ConfigError, BackendError."""
    if not view_of(run).trains:
        job = run.record.get("job")
        raise ConfigError(
            f"{run.id}: a {job} run takes no steps of the training loop; `ropewalk stacks {run.id}` shows its programs"
        )
    request, copy = _send(run, kind, steps), Copy(run)
    folder = request.folder(run)
    say(f"asked {run.id} for {'a profile' if kind == 'profile' else 'its memory'}; the ranks answer after a step")
    formations, answers, reason = _formations(run), dict[int, Mapping[str, Any]](), ""
    while True:
        is_over = final_outcome(run) is not None or run.attempts()[-1] != request.attempt
        if copy.is_remote:
            copy.freshen()
        answers = _read(folder, "rank")
        wanted = max((answer["world_size"] for answer in answers.values()), default=None)
        if wanted is not None and len(answers) >= wanted:
            break
        if is_over or _formations(run) != formations:
            reason = "the attempt ended meanwhile" if is_over else "the ranks formed a new group meanwhile"
            break
        time.sleep(LOOK_SECONDS)
    if not answers:
        raise BackendError(f"{run.id}: {reason}, and the ranks had not answered; ask again once it trains")
    missing = [rank for rank in range(wanted or 0) if rank not in answers]
    return Answers(request, folder, answers, missing, reason if missing else "")


def _send(run: RunDir, kind: Kind, steps: int = 0) -> InspectionRequest:
    state = states([run])[run.id].state
    if state is not RunState.RUNNING:
        raise ConfigError(f"{run.id} is {state.value.lower()}; only a running run can be looked into: `ropewalk why {run.id}`")
    request = request_inspection(run, kind, run.attempts()[-1], steps)
    write_to_original(run, run.requests.path.name)
    return request


def _live_nodes(run: RunDir, attempt: int) -> list[int]:
    """Return the nodes whose agents have started and not left."""
    folder = run.attempt_dir(attempt)
    lines = parse_lines((folder / AGENTS).read_bytes())[0] if (folder / AGENTS).exists() else []
    return sorted({int(line["node"]) for line in lines} - {_number(path) for path in (folder / NODES).glob("node-*.json")})


def _formations(run: RunDir) -> list[tuple[Any, Any]]:
    return [(event.get("attempt"), event.get("group")) for event in run.read_events() if event["event"] == "group_formed"]


def _read(folder: Path, who: str, wanted: list[int] | None = None) -> dict[int, Mapping[str, Any]]:
    paths = {_number(path): path for path in folder.glob(f"{who}-*.json")}
    numbers = sorted(paths) if wanted is None else [number for number in wanted if number in paths]
    return {number: orjson.loads(paths[number].read_bytes()) for number in numbers}  # of 10,000 ranks: a second less than json


def _number(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])

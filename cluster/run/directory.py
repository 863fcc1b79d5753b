"""A run is a directory: every path of it, and the few files that say what it is."""

import os
import re
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from cluster.config import Resources, Retries
from cluster.errors import EXIT_LOST_PEER, EXIT_NEVER_RETRY, ConfigError
from cluster.run import names
from cluster.run.attempts import attempt_folder, attempt_numbers, begin_attempts
from cluster.run.event_log import EventLog
from cluster.run.files import dated_folder, list_afresh, read_json, read_json_afresh, read_lines, write_all, write_json
from cluster.run.record import dump_record, read_record, without_diffs
from cluster.run.requests import Requests
from cluster.run.succession import ENDED, read_mark, write_mark
from cluster.spec import Outcome, RunState

RUNS_VARIABLE = "ROPEWALK_RUNS"
MODE_VARIABLE = "ROPEWALK_RUN_MODE"  # who may enter a run's directory, as chmod takes it: 2770 where a group shares its runs
PRIVATE_MODE = 0o700  # runs hold uncommitted work, logs and keys
CODE_FOLDER = ".code"  # under the runs' root: one copy of the code for all runs that were submitted with it


def runs_root() -> Path:
    """Where runs live: $ROPEWALK_RUNS, else ./runs."""
    return Path(os.environ.get(RUNS_VARIABLE) or "runs").absolute()


def make_private(folder: Path) -> None:
    """Make a folder that only this user can enter, or whom $ROPEWALK_RUN_MODE lets in. Raises FileExistsError."""
    word = os.environ.get(MODE_VARIABLE, "")
    if word and not re.fullmatch(r"[0-7]?7[0-7]{2}", word):
        raise ConfigError(
            f"${MODE_VARIABLE} is {word!r}: a mode as chmod takes it is meant, that lets the owner in, such as 2770"
        )
    folder.mkdir(mode=PRIVATE_MODE)
    if word:
        folder.chmod(int(word, 8))


class RunDir:
    """One run on disk. An object of this class holds no state: two processes that open the same path see the same run."""

    def __init__(self, path: Path | str, record: Mapping[str, Any] | None = None) -> None:
        """`record` is the content of run.yaml, where the caller has it already or there is no such file."""
        self.path = Path(path).absolute()
        if record is not None:
            self.record = record

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

    @property
    def id(self) -> str:
        """The run's name: that of its directory."""
        return self.path.name

    # --- what the run is: written once, before anything starts

    @classmethod
    def create(cls, name: str, record: Mapping[str, Any], root: Path | None = None) -> "RunDir":
        """Make a new run directory with a fresh id and write `run.yaml` into it."""
        return cls.create_all([name], [record], root)[0]

    @classmethod
    def create_all(cls, labels: Sequence[str], records: Sequence[Mapping[str, Any]], root: Path | None = None) -> list["RunDir"]:
        """Make many at once, in order. What a crash leaves is a whole run, or a directory that is none."""
        root = root or runs_root()
        root.mkdir(parents=True, exist_ok=True)
        paths = [dated_folder(root, name, (names.ATTEMPTS,), make_private) for name in labels]
        written, diffs = without_diffs(records)
        known: dict[Any, str] = {}
        files = {path / names.CODE_DIFF: diff for path, diff in zip(paths, diffs, strict=True) if diff}
        files |= {path / names.RECORD: dump_record(path.name, r, known) for path, r in zip(paths, written, strict=True)}
        write_all(files)
        return [cls(path, record={"run": path.name, **r}) for path, r in zip(paths, written, strict=True)]

    @classmethod
    def find(cls, word: str, root: Path | None = None) -> "RunDir":
        """The run that a user means: a path, an id, the unique beginning of an id, or `latest`."""
        if (Path(word) / names.RECORD).is_file():
            return cls(word)
        root = root or runs_root()
        if word and (root / word / names.RECORD).is_file():  # the others need not be looked at
            return cls(root / word)
        ids = [run.id for run in cls.all(root)]
        if word == "latest" and ids:
            return cls(root / ids[-1])
        matches = [i for i in ids if i == word] or [i for i in ids if i.startswith(word)]
        if len(matches) == 1:
            return cls(root / matches[0])
        if matches:
            raise ConfigError(f"run {word!r} is ambiguous: {', '.join(matches[:5])}; give more of the id")
        raise ConfigError(f"no run {word!r} under {root}; `ropewalk ps --all` lists them, ${RUNS_VARIABLE} moves the root")

    @classmethod
    def all(cls, root: Path | None = None) -> list["RunDir"]:
        """Every run under the root, oldest first."""
        root = root or runs_root()
        if not root.is_dir():
            return []
        with os.scandir(root) as entries:
            found = [e.path for e in entries if e.is_dir() and os.path.exists(os.path.join(e.path, names.RECORD))]
        return [cls(p) for p in sorted(found, key=lambda p: (os.stat(os.path.join(p, names.RECORD)).st_mtime_ns, p))]

    @cached_property
    def record(self) -> Mapping[str, Any]:
        """The content of `run.yaml`: job, entry, engine, configuration, resources, cluster, code, versions. Never changes."""
        try:
            return read_record(self.path / names.RECORD)
        except FileNotFoundError:
            raise ConfigError(f"{self.path}: not a run directory (no {names.RECORD})") from None

    @property
    def retries(self) -> Retries:
        """How often the run is tried again by itself."""
        return Retries.model_validate(self.record["config"].get("retries") or {})

    def resources(self, attempt: int | None = None) -> Resources:
        """What an attempt (unset: the newest) asks of the scheduler: what it was opened with, else what run.yaml says."""
        number = attempt or (self.attempts() or [0])[-1]
        return Resources.model_validate(self.attempt_details(number).get("resources") or self.record["resources"])

    @property
    def code(self) -> Path | None:
        """Where modules lie in the copy of the code that the run was submitted with; None: it runs whatever code is there.

        The path is told whether or not the copy still exists: who runs from it must look, lest other code runs.
        """
        code = self.record.get("code") or {}
        snapshot = code.get("snapshot")
        return self.path.parent / CODE_FOLDER / str(snapshot) / str(code.get("folder", "")) if snapshot else None

    @cached_property
    def parent(self) -> "RunDir | None":
        """The run on whose behalf this one exists, such as the sweep of a trial."""
        found = self.record.get("parent")
        return RunDir(self.path.parent / str(found)) if found else None

    # --- its files

    @property
    def metrics(self) -> Path:
        """The truth of all metrics: one JSON object a line."""
        return self.path / names.METRICS

    @property
    def events(self) -> EventLog:
        """What happened and when, for people and for `why`."""
        return EventLog(self.path / names.EVENTS)

    @property
    def progress(self) -> Path:
        """Where a long job stands now: {stage, done, total, unit, rates}; replaced, not appended."""
        return self.path / names.PROGRESS

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go unless the configuration names another place."""
        return self.path / names.CHECKPOINTS

    @property
    def model_record(self) -> Path:
        """What a run that trains keeps of its model beside the checkpoints; it is there once training has begun."""
        return self.path / "model.json"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer of the model that the run trains, copied so that the model can be used without the data."""
        return self.path / "tokenizer"

    @property
    def wandb(self) -> Path:
        """Where W&B's own files go."""
        return self.path / names.WANDB

    def attempt_dir(self, attempt: int) -> Path:
        """attempts/0001: script or manifest, scheduler id, logs, outcome."""
        return attempt_folder(self.path, attempt)

    def log_dir(self, attempt: int) -> Path:
        """attempts/0001/logs: node-K.log and rank-K.log."""
        return self.attempt_dir(attempt) / names.LOGS

    def event(self, kind: str, /, **fields: Any) -> None:
        """Record that something happened."""
        self.events.append({"event": kind, "time": time.time(), **fields})

    def read_events(self, *, afresh: bool = False) -> list[dict[str, Any]]:
        """All events so far, by time; `afresh`: something is decided by them."""
        return self.events.read(afresh=afresh)

    def read_metrics(self) -> list[dict[str, Any]]:
        """All metric lines so far, in the order in which they were written."""
        return [line for line in read_lines(self.metrics) if "step" in line]

    # --- attempts

    def attempts(self) -> list[int]:
        """The numbers of the attempts so far, ascending; the newest also where this machine's listing is old."""
        return attempt_numbers(self.path)

    def begin_attempt(self, **details: Any) -> int:
        """Open the next attempt. From now on no older attempt may write (see `Fence`)."""
        number = begin_attempts([self.path], [details])[0]
        self.make_folders(number)
        return number

    def make_folders(self, attempt: int) -> None:
        """The folders that agents and ranks of an attempt write into, if they are not there."""
        for name in (names.LOGS, names.GROUPS, names.NODES, names.ERRORS):
            os.makedirs(f"{self.attempt_dir(attempt)}/{name}", exist_ok=True)
        os.makedirs(self.events.folder, exist_ok=True)
        self.requests.make()

    def describe_attempt(self, attempt: int, **details: Any) -> None:
        """Add to what is known of an attempt, such as the scheduler's handle."""
        write_json(self.attempt_dir(attempt) / names.ATTEMPT, {**self.attempt_details(attempt), **details})

    def attempt_details(self, attempt: int) -> dict[str, Any]:
        """What the backend wrote when it opened the attempt: handle, resources, nodes."""
        return read_json(self.attempt_dir(attempt) / names.ATTEMPT) or {}

    def outcome(self, attempt: int) -> Outcome | None:
        """How the attempt ended, or None while it goes on."""
        path = self.attempt_dir(attempt) / names.OUTCOME
        raw = read_json(path)
        if raw is None and read_mark(path.with_name(ENDED)):
            raw = read_json_afresh(path)
        return Outcome(**{**raw, "state": RunState(raw["state"])}) if raw else None

    def write_outcome(self, attempt: int, outcome: Outcome) -> None:
        """Record how the attempt ended."""
        write_json(self.attempt_dir(attempt) / names.OUTCOME, vars(outcome))
        write_mark(self.attempt_dir(attempt) / ENDED, 1)

    def last_outcome(self) -> Outcome | None:
        """The outcome of the newest attempt, or None: none yet, or it still runs."""
        attempts = self.attempts()
        return self.outcome(attempts[-1]) if attempts else None

    def read_errors(self, attempt: int) -> list[dict[str, Any]]:
        """What ranks and agents of an attempt wrote as they gave up, the decisive one first.

        What no retry can mend decides, then the earliest; a lost peer is what followed from another's error.
        """
        folder = self.attempt_dir(attempt) / names.ERRORS
        found = [read_json(folder / name) for name in list_afresh(folder) if name.endswith(".json")]
        return sorted(
            (record for record in found if record),
            key=lambda r: (r["exit_code"] != EXIT_NEVER_RETRY, r["exit_code"] == EXIT_LOST_PEER, r["time"]),
        )

    def results(self) -> dict[str, Any]:
        """What the job itself returned, of the newest attempt that returned anything."""
        for attempt in reversed(self.attempts()):
            found = read_json(self.attempt_dir(attempt) / names.RESULT)
            if found is not None:
                return dict(found)
        return {}

    # --- what users ask of it

    @property
    def requests(self) -> Requests:
        """What users ask of the run: {cancel, nodes}."""
        return Requests(self.path / names.REQUESTS)

    @property
    def cancel_requested(self) -> bool:
        """A user asked for this run to end for good."""
        return bool(self.requests.get("cancel"))

    def request_cancel(self) -> None:
        """Ask for the run to end for good at its next step boundary."""
        self.requests.put("cancel", True)

    @property
    def orphaned(self) -> bool:
        """The run on whose behalf it exists has ended for good, or was told to: nobody waits for this one."""
        if self.parent is None:
            return False
        outcome = self.parent.last_outcome()
        return self.parent.cancel_requested or (outcome is not None and outcome.state.final)

    def withdraw_cancel(self) -> None:
        """The user resumes the run."""
        self.requests.put("cancel", None)

    @property
    def wanted_nodes(self) -> int | None:
        """How many nodes a user wants an elastic run to have; None: as many as its resources say."""
        nodes = self.requests.get("nodes")
        return int(nodes) if nodes else None

    def request_nodes(self, nodes: int) -> None:
        """Ask for the run to go on with another number of nodes."""
        self.requests.put("nodes", nodes)

    def withdraw_nodes(self) -> None:
        """The user resumes the run with resources of its own."""
        self.requests.put("nodes", None)

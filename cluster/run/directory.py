"""A run is a directory: every path of it, and the few files that say what it is."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ropewalk.cluster.config import Resources, Retries
from ropewalk.cluster.errors import EXIT_LOST_PEER, EXIT_NEVER_RETRY, ConfigError
from ropewalk.cluster.fresh_reads import list_afresh, read_json_afresh
from ropewalk.cluster.run import names
from ropewalk.cluster.run.attempts import attempt_folder, attempt_numbers, begin_attempts, outcome_of
from ropewalk.cluster.run.event_log import EventLog
from ropewalk.cluster.run.files import dated_folder, make_private, read_json, read_lines, write_all, write_json
from ropewalk.cluster.run.record import dump_record, read_record, without_diffs
from ropewalk.cluster.run.requests import Requests
from ropewalk.cluster.run.succession import ENDED, read_mark, write_mark
from ropewalk.cluster.spec import Outcome

log = logging.getLogger(__name__)

RUNS_VARIABLE = "ROPEWALK_RUNS"
CODE_FOLDER = ".code"  # under the runs' root: one copy of the code for all runs that were submitted with it


def runs_root() -> Path:
    """Return the folder of all runs: $ROPEWALK_RUNS, else ./runs."""
    return Path(os.environ.get(RUNS_VARIABLE) or "runs").absolute()


class RunDir:
    """One run on disk. An object of this class holds no state: two processes that open the same path see the same run."""

    def __init__(self, path: Path | str, record: Mapping[str, Any] | None = None) -> None:
        """Open a run; `record` is the content of run.yaml, where the caller has it already or the file does not exist."""
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
        """Make a new run directory with a fresh id, and write `run.yaml` into it."""
        return cls.create_all([name], [record], root)[0]

    @classmethod
    def create_all(cls, labels: Sequence[str], records: Sequence[Mapping[str, Any]], root: Path | None = None) -> list["RunDir"]:
        """Make many run directories, in order. What a crash leaves is a whole run, or a directory that is no run."""
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
    def find(cls, name: str, root: Path | None = None) -> "RunDir":
        """Find the run that a user names by a path, an id, the unique beginning of an id, or `latest`. Raises ConfigError."""
        if (Path(name) / names.RECORD).is_file():
            return cls(name)
        root = root or runs_root()
        if name and (root / name / names.RECORD).is_file():  # the others need not be looked at
            return cls(root / name)
        ids = [run.id for run in cls.all(root)]
        if name == "latest" and ids:
            return cls(root / ids[-1])
        matches = [i for i in ids if i == name] or [i for i in ids if i.startswith(name)]
        if len(matches) == 1:
            return cls(root / matches[0])
        if matches:
            raise ConfigError(f"run {name!r} is ambiguous: {', '.join(matches[:5])}; give more of the id")
        raise ConfigError(f"no run {name!r} under {root}; `ropewalk ps --all` lists them, ${RUNS_VARIABLE} moves the root")

    @classmethod
    def all(cls, root: Path | None = None) -> list["RunDir"]:
        """List every run under the root, oldest first."""
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
        """The folder of modules in the copy of the code that the run was submitted with; None: no copy was made.

        The copy may be gone: whoever runs from it has to check, lest other code runs.
        """
        code = self.record.get("code") or {}
        snapshot = code.get("snapshot")
        return self.path.parent / CODE_FOLDER / str(snapshot) / str(code.get("folder", "")) if snapshot else None

    @property
    def code_is_program(self) -> bool:
        """Return True if `code` is a copy of this program, which then runs from there, and not of the user's project."""
        return bool((self.record.get("code") or {}).get("is_program"))

    @property
    def project(self) -> Path:
        """The folder from which modules of the user's are imported: its copy, else the directory of the submission."""
        copy = None if self.code_is_program else self.code
        return copy or Path(self.record.get("directory") or Path.cwd())

    @cached_property
    def parent(self) -> "RunDir | None":
        """The run on whose behalf this one exists, such as the sweep of a trial."""
        found = self.record.get("parent")
        return RunDir(self.path.parent / str(found)) if found else None

    # --- its files

    @property
    def metrics(self) -> Path:
        """The file of all metrics, which W&B mirrors: one JSON object a line."""
        return self.path / names.METRICS

    @property
    def events(self) -> EventLog:
        """The log of what happened in the run and when, for people and for `why`."""
        return EventLog(self.path / names.EVENTS)

    @property
    def progress(self) -> Path:
        """The file that says where a long job stands now: {stage, done, total, unit, rates}; replaced, not appended."""
        return self.path / names.PROGRESS

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints, unless the configuration names another."""
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
        """The folder of W&B's own files."""
        return self.path / names.WANDB

    def attempt_dir(self, attempt: int) -> Path:
        """Return an attempt's folder, attempts/0001: script or manifest, scheduler id, logs, outcome."""
        return attempt_folder(self.path, attempt)

    def log_dir(self, attempt: int) -> Path:
        """Return the folder of an attempt's logs, node-K.log and rank-K.log."""
        return self.attempt_dir(attempt) / names.LOGS

    def event(self, kind: str, /, **fields: Any) -> None:
        """Append an event with the time. A disk that does not take it is logged: nothing waits for an event, nor fails by it."""
        try:
            self.events.append({"event": kind, "time": time.time(), **fields})
        except OSError as error:
            log.warning("%s: the event %s is lost: %s", self.id, kind, error)

    def read_events(self, *, afresh: bool = False) -> list[dict[str, Any]]:
        """Read all events so far, by time. Use `afresh` where something is decided by them."""
        return self.events.read(afresh=afresh)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read all metric lines so far, in the order in which they were written."""
        return [line for line in read_lines(self.metrics) if "step" in line]

    # --- attempts

    def attempts(self) -> list[int]:
        """List the numbers of the attempts so far, ascending."""
        return attempt_numbers(self.path)

    def begin_attempt(self, **details: Any) -> int:
        """Open the next attempt, and return its number. From now on no older attempt may write (see `Fence`)."""
        number = begin_attempts([self.path], [details])[0]
        self.make_folders(number)
        return number

    def make_folders(self, attempt: int) -> None:
        """Make the folders that agents and ranks of an attempt write into."""
        for name in (names.LOGS, names.GROUPS, names.NODES, names.ERRORS):
            os.makedirs(f"{self.attempt_dir(attempt)}/{name}", exist_ok=True)
        os.makedirs(self.events.folder, exist_ok=True)
        self.requests.make()

    def describe_attempt(self, attempt: int, **details: Any) -> None:
        """Add details to an attempt's `attempt.json`, such as the scheduler's handle."""
        write_json(self.attempt_dir(attempt) / names.ATTEMPT, {**self.attempt_details(attempt), **details})

    def attempt_details(self, attempt: int) -> dict[str, Any]:
        """Read what the backend wrote when it opened the attempt: handle, resources, its own keys."""
        return read_json(self.attempt_dir(attempt) / names.ATTEMPT) or {}

    def outcome(self, attempt: int) -> Outcome | None:
        """Read how the attempt ended; None while it goes on."""
        path = self.attempt_dir(attempt) / names.OUTCOME
        raw = read_json(path)
        if raw is None and read_mark(path.with_name(ENDED)):
            raw = read_json_afresh(path)
        return outcome_of(raw, path) if raw else None

    def write_outcome(self, attempt: int, outcome: Outcome) -> None:
        """Write down how the attempt ended."""
        write_json(self.attempt_dir(attempt) / names.OUTCOME, vars(outcome))
        write_mark(self.attempt_dir(attempt) / ENDED, 1)

    def last_outcome(self) -> Outcome | None:
        """Read the outcome of the newest attempt; None if it still goes on, or there is no attempt yet."""
        attempts = self.attempts()
        return self.outcome(attempts[-1]) if attempts else None

    def read_errors(self, attempt: int) -> list[dict[str, Any]]:
        """Read the errors that ranks and agents of an attempt recorded as they gave up, the decisive one first.

        An error that no retry can mend decides, then the earliest; a lost peer only follows from another's error.
        """
        folder = self.attempt_dir(attempt) / names.ERRORS
        found = [read_json(folder / name) for name in list_afresh(folder) if name.endswith(".json")]
        return sorted(
            (record for record in found if record),
            key=lambda r: (r["exit_code"] != EXIT_NEVER_RETRY, r["exit_code"] == EXIT_LOST_PEER, r["time"]),
        )

    def results(self) -> dict[str, Any]:
        """Read the results that the job returned in the newest attempt that returned any."""
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
        """Whether a user asked for this run to end for good."""
        return bool(self.requests.get("cancel"))

    def request_cancel(self) -> None:
        """Ask the run to end for good at its next step boundary."""
        self.requests.put("cancel", True)

    @property
    def orphaned(self) -> bool:
        """Whether the run on whose behalf this one exists has ended for good, or was cancelled: nobody waits for this one.

        One whose record has `outlives_parent` goes on when its parent ends, unless that is cancelled.
        """
        if self.parent is None:
            return False
        if self.parent.cancel_requested:
            return True
        outcome = self.parent.last_outcome()
        return outcome is not None and outcome.state.final and not self.record.get("outlives_parent")

    def withdraw_cancel(self) -> None:
        """Withdraw a user's request to end the run: the user resumes it."""
        self.requests.put("cancel", None)

    @property
    def wanted_nodes(self) -> int | None:
        """The number of nodes that a user asked for; None: as many as the run's resources say."""
        nodes = self.requests.get("nodes")
        return int(nodes) if nodes else None

    def request_nodes(self, nodes: int) -> None:
        """Ask an elastic run to go on with another number of nodes."""
        self.requests.put("nodes", nodes)

    def withdraw_nodes(self) -> None:
        """Withdraw a request for a number of nodes: the user resumes the run with other resources."""
        self.requests.put("nodes", None)

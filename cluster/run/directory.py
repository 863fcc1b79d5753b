"""`RunDir`, the interface to a run directory: paths, record, attempts, outcomes, user requests."""

import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from ropewalk.cluster.config import Resources, Retries
from ropewalk.cluster.errors import EXIT_LOST_PEER, EXIT_NEVER_RETRY, ConfigError
from ropewalk.cluster.fresh_reads import list_afresh, read_afresh, read_json_afresh
from ropewalk.cluster.run import names
from ropewalk.cluster.run.attempts import attempt_folder, attempt_numbers, begin_attempts, parse_outcome
from ropewalk.cluster.run.event_log import EventLog
from ropewalk.cluster.run.files import dated_folder, make_private, read_json, read_lines, write_all, write_json
from ropewalk.cluster.run.record import dump_record, read_record, without_diffs
from ropewalk.cluster.run.requests import Requests
from ropewalk.cluster.run.succession import read_mark, write_mark
from ropewalk.cluster.spec import Outcome

log = logging.getLogger(__name__)

RUNS_VARIABLE = "ROPEWALK_RUNS"
# Ids contain the local time of the machine that submitted the run, in any time zone.
DATED, DATE_FORMAT = re.compile(r"-(\d{8}-\d{6})-[0-9a-f]{4,6}$"), "%Y%m%d-%H%M%S"
RECENT_SECONDS = 2 * 86400.0
CODE_FOLDER = ".code"  # under the runs' root: copies of code, each shared by all runs that were submitted with it


def runs_root() -> Path:
    """Return the folder of all runs: $ROPEWALK_RUNS, else ./runs."""
    return Path(os.environ.get(RUNS_VARIABLE) or "runs").absolute()


def ids_under(root: Path) -> list[str]:
    """List the names under a root of runs; some may be other files."""
    try:
        return os.listdir(root)
    except (FileNotFoundError, NotADirectoryError):
        return []


def runs_by_age(root: Path, ids: Iterable[str]) -> list["RunDir"]:
    """Return the runs among `ids`, oldest first."""
    ages = []
    for name in ids:
        path = f"{root}/{name}"
        with suppress(OSError):  # not a run, or one that is private to another user
            ages.append((os.stat(f"{path}/{names.RECORD}").st_mtime_ns, path))
    return [RunDir(path) for _, path in sorted(ages)]


class RunDir:
    """A run on disk. Objects have no state of their own: all processes that open the same path see the same run."""

    def __init__(self, path: Path | str, record: Mapping[str, Any] | None = None) -> None:
        """Open a run. `record`: the content of run.yaml if the caller has it already, or the file does not exist."""
        self.path = Path(path).absolute()
        if record is not None:
            self.record = record

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

    @property
    def id(self) -> str:
        return self.path.name

    # --- identity and record, written once before the run starts

    @classmethod
    def create(cls, name: str, record: Mapping[str, Any], root: Path | None = None) -> "RunDir":
        """Make a run directory with a new id and its `run.yaml`."""
        return cls.create_all([name], [record], root)[0]

    @classmethod
    def create_all(cls, labels: Sequence[str], records: Sequence[Mapping[str, Any]], root: Path | None = None) -> list["RunDir"]:
        """Make many run directories, in order. After a crash each is either a complete run, or has no run.yaml."""
        root = root or runs_root()
        root.mkdir(parents=True, exist_ok=True)
        paths = [dated_folder(root, name, (names.ATTEMPTS,), make_private) for name in labels]
        written, diffs = without_diffs(records)
        cache: dict[Any, str] = {}
        files = {path / names.CODE_DIFF: diff for path, diff in zip(paths, diffs, strict=True) if diff}
        files |= {path / names.RECORD: dump_record(path.name, r, cache) for path, r in zip(paths, written, strict=True)}
        write_all(files)
        return [cls(path, record={"run": path.name, **r}) for path, r in zip(paths, written, strict=True)]

    @classmethod
    def find(cls, name: str, root: Path | None = None) -> "RunDir":
        """Find a run by its path, its id, its name, a unique prefix of its id, or `latest`. Raises ConfigError."""
        if (Path(name) / names.RECORD).is_file():
            return cls(name)
        root = root or runs_root()
        if name and (root / name / names.RECORD).is_file():  # faster than a listing of all runs
            return cls(root / name)
        if name == "latest" and (latest := next(cls.newest_first(root), None)):
            return latest
        matches = cls.all(root, name)
        named = [run for run in matches if DATED.fullmatch(run.id.removeprefix(name))]  # without steps of a pipeline
        if len(matches) == 1 or len(named) == 1:
            return (named or matches)[0]
        if matches:
            ids = ", ".join(run.id for run in matches[:5])
            raise ConfigError(f"run {name!r} is ambiguous: {ids}; use a longer prefix of the id")
        raise ConfigError(f"no run {name!r} under {root}; `ropewalk ps --all` lists the runs, ${RUNS_VARIABLE} sets the root")

    @classmethod
    def all(cls, root: Path | None = None, prefix: str = "") -> list["RunDir"]:
        """List the runs under the root whose ids start with `prefix`, oldest first."""
        root = root or runs_root()
        return runs_by_age(root, [name for name in ids_under(root) if name.startswith(prefix)])

    @classmethod
    def newest_first(cls, root: Path | None = None) -> Iterator["RunDir"]:
        """Yield the runs under the root, newest first; older ones are looked up only if the caller goes on that far."""
        root = root or runs_root()
        ids = ids_under(root)
        dates = {name: match[1] for name in ids if (match := DATED.search(name))}
        today = time.strftime(DATE_FORMAT)
        try:
            newest = time.strptime(min(today, max(dates.values(), default=today)), DATE_FORMAT)
        except ValueError:  # a name that only looks like a date
            newest = time.strptime(today, DATE_FORMAT)
        recent = time.strftime(DATE_FORMAT, time.localtime(time.mktime(newest) - RECENT_SECONDS))
        older = {name for name, date in dates.items() if date < recent}
        for part in ([name for name in ids if name not in older], older):
            yield from reversed(runs_by_age(root, part))

    @cached_property
    def record(self) -> Mapping[str, Any]:
        """Content of `run.yaml`, with the changes of the user's resumes: job, entry, engine, configuration, code, versions."""
        try:
            record = read_record(self.path / names.RECORD)
        except FileNotFoundError:
            raise ConfigError(f"{self.path}: not a run directory (no {names.RECORD})") from None
        for change in self.changes:
            record = {**record, **change, "config": {**record["config"], **change["config"]}}
            del record["attempt"]
        return record

    @property
    def changes(self) -> list[dict[str, Any]]:
        """Changes of the record by resumes: {attempt, config: changed keys, and other keys of the record, such as code}."""
        try:
            empty = os.stat(f"{self.path}/{names.CHANGES}").st_size == 0
        except FileNotFoundError:
            empty = True
        return [] if empty else read_json(self.path / names.CHANGES) or []

    def refresh_changes(self) -> None:
        """Drop what an NFS client has cached of the changes; each machine calls it before it reads the record of an attempt."""
        read_afresh(self.path / names.CHANGES)
        self.__dict__.pop("record", None)

    def write_changes(self, changes: Sequence[Mapping[str, Any]]) -> None:
        """Replace the changes of the record."""
        write_json(self.path / names.CHANGES, changes)
        self.__dict__.pop("record", None)  # cached

    @property
    def retries(self) -> Retries:
        return Retries.model_validate(self.record["config"].get("retries") or {})

    def resources(self, attempt: int | None = None) -> Resources:
        """Return the resources that an attempt (default: the newest) was opened with, else those in run.yaml."""
        number = attempt or (self.attempts() or [0])[-1]
        return Resources.model_validate(self.attempt_details(number).get("resources") or self.record["resources"])

    @property
    def code(self) -> Path | None:
        """Folder of modules in the copy of the submitted code, which may be gone: check before use. None if no copy was made."""
        code = self.record.get("code") or {}
        snapshot = code.get("snapshot")
        return self.path.parent / CODE_FOLDER / str(snapshot) / str(code.get("folder", "")) if snapshot else None

    @property
    def code_is_program(self) -> bool:
        """True if `code` is a copy of this program, which then runs from there, rather than of the user's project."""
        return bool((self.record.get("code") or {}).get("is_program"))

    @property
    def project(self) -> Path:
        """The folder from which modules of the user's are imported: its copy, else the directory of the submission."""
        if project := self.record.get("project"):
            return self.path.absolute().parent / CODE_FOLDER / str(project["snapshot"]) / str(project["folder"])
        copy = None if self.code_is_program else self.code
        return copy or Path(self.record.get("directory") or Path.cwd())

    @cached_property
    def parent(self) -> "RunDir | None":
        """The run that started this one, such as the sweep of a trial."""
        parent = self.record.get("parent")
        return RunDir(self.path.parent / str(parent)) if parent else None

    # --- files

    @property
    def metrics(self) -> Path:
        return self.path / names.METRICS

    @property
    def events(self) -> EventLog:
        """Event log of the run, for people and for `why`."""
        return EventLog(self.path / names.EVENTS)

    @property
    def progress(self) -> Path:
        """File with the current progress of a long job: {stage, done, total, unit, rates}. It is replaced at each update."""
        return self.path / names.PROGRESS

    @property
    def checkpoints(self) -> Path:
        """Default folder of checkpoints; the configuration may name another one."""
        return self.path / names.CHECKPOINTS

    @property
    def model_record(self) -> Path:
        """File that describes the model of a training run; it exists once training has begun."""
        return self.path / "model.json"

    @property
    def tokenizer(self) -> Path:
        """Copy of the tokenizer of the model that the run trains, so that the model can be used without the data."""
        return self.path / "tokenizer"

    @property
    def wandb(self) -> Path:
        return self.path / names.WANDB

    def attempt_dir(self, attempt: int) -> Path:
        """Return an attempt's folder, such as attempts/0001."""
        return attempt_folder(self.path, attempt)

    def log_dir(self, attempt: int) -> Path:
        """Return the folder of an attempt's logs, node-K.log and rank-K.log."""
        return self.attempt_dir(attempt) / names.LOGS

    def event(self, kind: str, /, **fields: Any) -> None:
        """Append an event with the current time. If it cannot be written, a warning is logged."""
        try:
            self.events.append({"event": kind, "time": time.time(), **fields})
        except OSError as error:
            log.warning("%s: the event %s could not be written: %s", self.id, kind, error)

    def read_events(self, *, afresh: bool = False) -> list[dict[str, Any]]:
        """Read all events, sorted by time. `afresh`: bypass the caches of a shared file system, for decisions."""
        return self.events.read(afresh=afresh)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read all metric lines, in the order in which they were written."""
        return [line for line in read_lines(self.metrics) if "step" in line]

    # --- attempts

    def attempts(self) -> list[int]:
        """List the numbers of the attempts, ascending."""
        return attempt_numbers(self.path)

    def begin_attempt(self, **details: Any) -> int:
        """Open the next attempt, and return its number. Older attempts can no longer write (see `Fence`)."""
        number = begin_attempts([self.path], [details])[0]
        self.make_folders(number)
        return number

    def make_folders(self, attempt: int) -> None:
        """Make the folders into which agents and ranks of an attempt write."""
        for name in (names.LOGS, names.GROUPS, names.NODES, names.ERRORS):
            os.makedirs(f"{self.attempt_dir(attempt)}/{name}", exist_ok=True)
        os.makedirs(self.events.folder, exist_ok=True)
        self.requests.make()

    def describe_attempt(self, attempt: int, **details: Any) -> None:
        """Add details to an attempt's `attempt.json`, such as the scheduler's handle."""
        write_json(self.attempt_dir(attempt) / names.ATTEMPT, {**self.attempt_details(attempt), **details})

    def attempt_details(self, attempt: int) -> dict[str, Any]:
        """Read the details that the backend recorded for the attempt: handle, resources, keys of its own."""
        return read_json(self.attempt_dir(attempt) / names.ATTEMPT) or {}

    def outcome(self, attempt: int) -> Outcome | None:
        """Read the attempt's outcome; None while the attempt goes on."""
        path = self.attempt_dir(attempt) / names.OUTCOME
        raw = read_json(path)
        if raw is None and read_mark(path.with_name(names.ENDED)):
            raw = read_json_afresh(path)
        return parse_outcome(raw, path) if raw else None

    def write_outcome(self, attempt: int, outcome: Outcome) -> None:
        write_json(self.attempt_dir(attempt) / names.OUTCOME, vars(outcome))
        write_mark(self.attempt_dir(attempt) / names.ENDED, 1)

    def last_outcome(self) -> Outcome | None:
        """Read the outcome of the newest attempt; None if it goes on, or there is no attempt yet."""
        attempts = self.attempts()
        return self.outcome(attempts[-1]) if attempts else None

    def read_errors(self, attempt: int) -> list[dict[str, Any]]:
        """Read the errors that ranks and agents of an attempt recorded, the decisive one first.

        Errors that a retry cannot fix come first, then others by time, and lost peers last, since they follow from other errors.
        """
        folder = self.attempt_dir(attempt) / names.ERRORS
        records = [read_json(folder / name) for name in list_afresh(folder) if name.endswith(".json")]
        return sorted(
            (record for record in records if record),
            key=lambda r: (r["exit_code"] != EXIT_NEVER_RETRY, r["exit_code"] == EXIT_LOST_PEER, r["time"]),
        )

    def results(self) -> dict[str, Any]:
        """Read the results of the job from the newest attempt that has any."""
        for attempt in reversed(self.attempts()):
            results = read_json(self.attempt_dir(attempt) / names.RESULT)
            if results is not None:
                return dict(results)
        return {}

    # --- requests of users

    @property
    def requests(self) -> Requests:
        """Requests of users: {cancel, nodes}."""
        return Requests(self.path / names.REQUESTS)

    @property
    def cancel_requested(self) -> bool:
        return bool(self.requests.get("cancel"))

    def request_cancel(self) -> None:
        """Request that the run ends for good at its next step boundary."""
        self.requests.put("cancel", True)

    @property
    def orphaned(self) -> bool:
        """True if the run's parent was cancelled, or has ended for good and the record has no `outlives_parent`."""
        if self.parent is None:
            return False
        if self.parent.cancel_requested:
            return True
        outcome = self.parent.last_outcome()
        return outcome is not None and outcome.state.final and not self.record.get("outlives_parent")

    def withdraw_cancel(self) -> None:
        self.requests.put("cancel", None)

    @property
    def wanted_nodes(self) -> int | None:
        """Number of nodes that a user requested; None: the number in the run's resources."""
        nodes = self.requests.get("nodes")
        return int(nodes) if nodes else None

    def request_nodes(self, nodes: int) -> None:
        self.requests.put("nodes", nodes)

    def withdraw_nodes(self) -> None:
        self.requests.put("nodes", None)

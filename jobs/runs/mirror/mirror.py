"""One run mirrored into W&B: new lines, the summary, what it reads and makes, and what its owner must be told."""

import json
import time
import zlib
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import BackendError
from ropewalk.cluster.fresh_reads import read_json_afresh
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json, write_atomically, write_json
from ropewalk.cluster.run.names import CODE_DIFF, HISTOGRAMS, WANDB_ADDRESS
from ropewalk.cluster.spec import Outcome
from ropewalk.jobs.registry import view_class
from ropewalk.jobs.results import readable
from ropewalk.jobs.runs.mirror.alerts import alerts
from ropewalk.jobs.runs.mirror.feed import Feed
from ropewalk.jobs.runs.mirror.lease import Lease
from ropewalk.jobs.runs.mirror.server import history_lines
from ropewalk.jobs.runs.mirror.wandb_run import WandbRun, notes, project_of
from ropewalk.jobs.runs.models import inputs as lineage
from ropewalk.sharding.layout import directory_of

SAFE_SECONDS = 2.5  # what was handed over longer ago is on disk whatever happens to this process
SLOW_SECONDS = 15.0  # between two looks at everything but lines
DIFF = "diff.patch"
NONE, FAILURES = "none", "failures"  # of `wandb.alerts`


class Mirror:
    """Mirrors a run from the line on that W&B lacks: online the server says which that is, offline a file beside W&B's own."""

    def __init__(self, run: RunDir, attempt: int, *, offline: bool, beside: bool = False) -> None:
        self.run, self.attempt, self.offline = run, attempt, offline
        name = "offline" if offline else "online"
        self._told_path, self._state_path = run.wandb / f"{name}-told.json", run.wandb / f"{name}.json"
        self._feed = Feed(run, run.wandb / f"{name}.jsonl")
        self._told: dict[str, Any] = dict(read_json_afresh(self._told_path) or {})
        self._handed_over: deque[tuple[float, int]] = deque()
        self._next_slow = 0.0
        kept = (read_json_afresh(self._state_path) or {}).get("lines", 0)
        if not offline:
            self.lines_at_server()  # raises at once where wandb would try for half a minute
        self.wandb = WandbRun(run, attempt, offline=offline, beside=beside)
        self.sent = int(kept) if offline else self.wandb.lines
        if self.wandb.url:
            write_json(run.path / WANDB_ADDRESS, {"address": self.wandb.url}, durable=False)
        self.wandb.send(self._feed.again(self.sent))
        self.sent = self._feed.count

    def pump(self, *, only_metrics: bool = False) -> int:
        """Hand over what is new; returns the number of lines."""
        lines = self._feed.look(only_metrics=only_metrics)
        self.wandb.send(lines)
        self.sent += len(lines)
        now = time.monotonic()
        if now >= self._next_slow:
            self._next_slow = now + SLOW_SECONDS
            self._tell(None)
        if self.offline:
            self._keep_place(now, moved=bool(lines))
        return len(lines)

    def finish(self, ending: Outcome | None, exit_code: int) -> None:
        """Hand over the rest and close the W&B run. `ending` is None for a run that goes on with another attempt."""
        self.pump()
        self._tell(ending)
        self.wandb.finish(exit_code, preempting=ending is None)
        if self.offline:
            write_json(self._state_path, {"lines": self.sent})

    def lines_at_server(self) -> int:
        """How many lines the server has. Raises BackendError."""
        return history_lines(self.run.id, *project_of(self.run))

    def keep_complete(self, ending: Outcome | None) -> None:
        """Write down that the server has everything of a run that is over, so that nobody asks it again."""
        write_json(self._state_path, {"lines": self.sent, "sizes": sizes(self.run), "ended": ending is not None})

    def _keep_place(self, now: float, *, moved: bool) -> None:
        if moved:
            self._handed_over.append((now, self.sent))
        safe = None
        while self._handed_over and self._handed_over[0][0] < now - SAFE_SECONDS:
            safe = self._handed_over.popleft()[1]
        if safe is not None:
            write_json(self._state_path, {"lines": safe})

    # --- what is no line

    def _tell(self, ending: Outcome | None) -> None:
        """Summary, lineage and alerts, each only where it is new."""
        before = json.dumps(self._told, sort_keys=True)
        values = view_class(str(self.run.record["job"]))(self.run).wandb_summary()
        if values and (mark := zlib.crc32(json.dumps(values, sort_keys=True, default=str).encode())) != self._told.get("summary"):
            self.wandb.summary(values)
            self._told["summary"] = mark
        self._tell_lineage()
        self._tell_code_and_notes()
        self._upload(ending)
        self._tell_readable()
        self._tell_alerts(ending)
        if json.dumps(self._told, sort_keys=True) != before:
            write_json(self._told_path, self._told)

    def _tell_lineage(self) -> None:
        told: dict[str, list[str]] = self._told.setdefault("artifacts", {})
        for used, references in ((True, lineage.reads(self.run)), (False, lineage.makes(self.run))):
            for one in references:
                key, aliases = f"{'reads' if used else 'makes'} {one.uri}", sorted(one.aliases)
                if told.get(key) != aliases:
                    self.wandb.artifact(one.name, one.kind, one.uri, one.metadata, list(one.aliases), used=used)
                    told[key] = aliases

    def _tell_code_and_notes(self) -> None:
        """The uncommitted changes as the file in which W&B itself keeps them, and how attempts ended."""
        if (text := notes(self.run)) and self._told.get("notes") != text:
            self.wandb.note(text)
            self._told["notes"] = text
        changes = self.run.path / CODE_DIFF
        if not self._told.get("diff") and changes.is_file():
            write_atomically(self.run.wandb / DIFF, changes.read_bytes())
            self.wandb.file(self.run.wandb / DIFF)
            self._told["diff"] = True

    def _tell_readable(self) -> None:
        """Tables and pictures, each where its file changed."""
        told: dict[str, int] = self._told.setdefault("readable", {})
        for path in [*readable.tables(self.run.path), *readable.pictures(self.run.path)]:
            with suppress(OSError):  # it is being replaced
                key, mark = f"{path.parent.name}/{path.name}", zlib.crc32(path.read_bytes())
                if told.get(key) == mark:
                    continue
                if path.suffix == ".png":
                    self.wandb.picture(path)
                elif (table := readable.read_table(path)) is not None:
                    self.wandb.table(table)
                told[key] = mark

    def _upload(self, ending: Outcome | None) -> None:
        """Weights, where `wandb.upload` says so: of every checkpoint as it appears, or of the best one at the end."""
        wanted = self._option("upload")
        told: list[int] = self._told.setdefault("uploaded", [])
        if wanted is None or (wanted == "best" and ending is None):
            return
        for step, aliases in lineage.checkpoints_to_upload(self.run, only_best=wanted == "best"):
            if step in told:
                continue
            with suppress(OSError):  # a newer checkpoint has taken its place
                folder = self.run.checkpoints / directory_of(step)
                self.wandb.upload(f"{self.run.id}-weights", "weights", folder, {"run": self.run.id, "step": step}, aliases)
                told.append(step)

    def _option(self, key: str) -> Any:
        return ((self.run.record.get("config") or {}).get("wandb") or {}).get(key)

    def _tell_alerts(self, ending: Outcome | None) -> None:
        wanted = self._option("alerts") or FAILURES
        told: list[str] = self._told.setdefault("alerts", [])
        if wanted == NONE:
            return
        for alert in alerts(self.run, ending):
            if alert.key not in told and (alert.serious or wanted != FAILURES):
                self.wandb.alert(alert.title, alert.text, serious=alert.serious)
                told.append(alert.key)


def sizes(run: RunDir) -> dict[str, int]:
    """The bytes of each file that is mirrored."""
    attempts = [*run.path.glob("attempts/*/nodes/node-*.jsonl"), *run.path.glob("attempts/*/outcome.json")]
    paths = [run.metrics, run.path / HISTOGRAMS, *run.events.files(), *attempts]
    return {path.relative_to(run.path).as_posix(): path.stat().st_size for path in sorted(paths) if path.exists()}


def is_complete(run: RunDir) -> bool:
    """Whether the server is known to have all of a run that is over."""
    known = read_json(run.wandb / "online.json") or {}
    return bool(known.get("ended")) and known.get("sizes") == sizes(run)


def lease_of(run: RunDir) -> Lease:
    """The lease of whoever sends a run to the server."""
    return Lease(run.wandb / "online.lease")


def send_rest(run: RunDir) -> int:
    """Send what the server lacks of a run that nobody mirrors now; returns the number of lines. Raises BackendError."""
    if is_complete(run) or not run.attempts():
        return 0
    lease = lease_of(run)
    if not lease.take():
        raise BackendError(f"{run.id}: another process sends it to W&B just now ({Path(run.wandb / 'online.lease')})")
    try:
        outcome = run.last_outcome()
        ending = outcome if outcome is not None and outcome.state.final else None
        known = history_lines(run.id, *project_of(run))
        mirror = Mirror(run, run.attempts()[-1], offline=False)
        mirror.finish(ending, outcome.exit_code if outcome is not None else 0)
        there = mirror.lines_at_server()
        if there < mirror.sent:
            raise BackendError(f"{run.id}: W&B took {there} of {mirror.sent} lines; `ropewalk sync {run.id}` sends the rest")
        mirror.keep_complete(ending)
        return mirror.sent - known
    finally:
        lease.give_up()

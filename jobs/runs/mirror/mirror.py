"""Mirroring of one run into W&B: new lines, summary, inputs and outputs, alerts."""

import json
import time
import zlib
from collections import deque
from contextlib import suppress
from functools import cached_property
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
from ropewalk.jobs.runs.mirror.feed import Feed
from ropewalk.jobs.runs.mirror.server import history_lines
from ropewalk.jobs.runs.mirror.wandb_run import WandbRun, notes, project_of
from ropewalk.jobs.runs.models import inputs as lineage
from ropewalk.jobs.runs.notify.alerts import alerts
from ropewalk.jobs.runs.notify.lease import Lease
from ropewalk.sharding.checkpoints.layout import directory_of

SAFE_SECONDS = 2.5  # after which lines passed to wandb are on disk, even if this process is killed
SLOW_SECONDS = 15.0  # between two checks of everything except lines
DIFF = "diff.patch"
NONE, FAILURES, FIGURES, ALL = "none", "failures", "figures", "all"  # of `wandb.alerts` and `wandb.tables`


class Mirror:
    """Mirrors a run, starting with the first line that W&B lacks; its number comes from the server, offline from a file."""

    def __init__(self, run: RunDir, attempt: int, *, offline: bool, beside: bool = False) -> None:
        self.run, self.attempt, self.offline = run, attempt, offline
        name = "offline" if offline else "online"
        self._reported_path, self._state_path = run.wandb / f"{name}-told.json", run.wandb / f"{name}.json"
        self._feed = Feed(run, run.wandb / f"{name}.jsonl")
        self._reported: dict[str, Any] = dict(read_json_afresh(self._reported_path) or {})  # everything except lines
        self._handed_over: deque[tuple[float, int]] = deque()
        self._next_slow = 0.0
        saved_lines = (read_json_afresh(self._state_path) or {}).get("lines", 0)
        if not offline:
            self.lines_at_server()  # raises at once if the server is away; wandb would retry for half a minute
        self.wandb = WandbRun(run, attempt, offline=offline, beside=beside)
        self.sent = int(saved_lines) if offline else self.wandb.lines
        if self.wandb.url:
            write_json(run.path / WANDB_ADDRESS, {"address": self.wandb.url}, durable=False)
        self.wandb.send(self._feed.again(self.sent))
        self.sent = self._feed.count

    def pump(self, *, only_metrics: bool = False, last: bool = False) -> int:
        """Send new lines, and return their number. `last`: no call follows."""
        lines = self._feed.look(only_metrics=only_metrics, last=last)
        self.wandb.send(lines)
        self.sent += len(lines)
        now = time.monotonic()
        if now >= self._next_slow:
            self._next_slow = now + SLOW_SECONDS
            self._report(None)
        if self.offline:
            self._save_position(now, moved=bool(lines))
        return len(lines)

    def finish(self, ending: Outcome | None, exit_code: int) -> None:
        """Send the rest, and close the W&B run. `ending`: None for a run that goes on with another attempt."""
        self.pump(last=True)
        self._report(ending)
        self.wandb.finish(exit_code, preempting=ending is None)
        if self.offline:
            write_json(self._state_path, {"lines": self.sent})

    def lines_at_server(self) -> int:
        """Return the number of lines that the server has. Raises BackendError."""
        return history_lines(self.run.id, *project_of(self.run))

    def keep_complete(self, ending: Outcome | None) -> None:
        """Record that the server has all lines of an ended run, so that it is not queried again."""
        write_json(self._state_path, {"lines": self.sent, "sizes": sizes(self.run), "ended": ending is not None})

    def _save_position(self, now: float, *, moved: bool) -> None:
        if moved:
            self._handed_over.append((now, self.sent))
        safe = None
        while self._handed_over and self._handed_over[0][0] < now - SAFE_SECONDS:
            safe = self._handed_over.popleft()[1]
        if safe is not None:
            write_json(self._state_path, {"lines": safe})

    # --- everything except lines

    def _report(self, ending: Outcome | None) -> None:
        """Send summary, inputs and outputs, code, notes, tables, pictures and alerts, each only if it is new."""
        before = json.dumps(self._reported, sort_keys=True)
        values = view_class(str(self.run.record["job"]))(self.run).wandb_summary()
        checksum = zlib.crc32(json.dumps(values, sort_keys=True, default=str).encode())
        if values and checksum != self._reported.get("summary"):
            self.wandb.summary(values)
            self._reported["summary"] = checksum
        self._report_lineage()
        self._report_code_and_notes()
        self._upload(ending)
        self._report_readable()
        self._send_alerts(ending)
        if json.dumps(self._reported, sort_keys=True) != before:
            write_json(self._reported_path, self._reported)

    def _report_lineage(self) -> None:
        reported: dict[str, list[str]] = self._reported.setdefault("artifacts", {})
        for used, references in ((True, lineage.reads(self.run)), (False, lineage.makes(self.run))):
            for each in references:
                key, aliases = f"{'reads' if used else 'makes'} {each.uri}", sorted(each.aliases)
                if reported.get(key) != aliases:
                    self.wandb.artifact(each.name, each.kind, each.uri, each.metadata, list(each.aliases), used=used)
                    reported[key] = aliases

    def _report_code_and_notes(self) -> None:
        """Send the uncommitted changes under the name that W&B uses for them, and the outcomes of attempts."""
        if (text := notes(self.run)) and self._reported.get("notes") != text:
            self.wandb.note(text)
            self._reported["notes"] = text
        changes = self.run.path / CODE_DIFF
        if not self._reported.get("diff") and changes.is_file() and self._tables != NONE:
            write_atomically(self.run.wandb / DIFF, changes.read_bytes())
            self.wandb.file(self.run.wandb / DIFF)
            self._reported["diff"] = True

    def _report_readable(self) -> None:
        """Send tables and pictures whose files have changed, according to `wandb.tables`."""
        if self._tables == NONE:
            return
        reported: dict[str, int] = self._reported.setdefault("readable", {})
        for path in [*readable.tables(self.run.path), *readable.pictures(self.run.path)]:
            with suppress(OSError):  # the file is being replaced
                key, checksum = f"{path.parent.name}/{path.name}", zlib.crc32(path.read_bytes())
                if reported.get(key) == checksum:
                    continue
                if path.suffix == ".png":
                    self.wandb.picture(path)
                elif (table := readable.read_table(path)) is not None and (table.figures or self._tables == ALL):
                    self.wandb.table(table)
                reported[key] = checksum

    def _upload(self, ending: Outcome | None) -> None:
        """Upload weights according to `wandb.upload`: of every new checkpoint, or of the best one at the end."""
        wanted = self._option("upload")
        uploaded: list[int] = self._reported.setdefault("uploaded", [])
        if wanted is None or (wanted == "best" and ending is None):
            return
        for step, aliases in lineage.checkpoints_to_upload(self.run, only_best=wanted == "best"):
            if step in uploaded:
                continue
            with suppress(OSError):  # the checkpoint was replaced by a newer one
                folder = self.run.checkpoints / directory_of(step)
                self.wandb.upload(f"{self.run.id}-weights", "weights", folder, {"run": self.run.id, "step": step}, aliases)
                uploaded.append(step)

    @cached_property
    def _tables(self) -> str:
        return str(self._option("tables") or (FIGURES if lineage.reads_captured(self.run) else ALL))

    def _option(self, key: str) -> Any:
        return ((self.run.record.get("config") or {}).get("wandb") or {}).get(key)

    def _send_alerts(self, ending: Outcome | None) -> None:
        wanted = self._option("alerts") or FAILURES
        sent: list[str] = self._reported.setdefault("alerts", [])
        if wanted == NONE:
            return
        for alert in alerts(self.run, ending):
            if alert.key not in sent and (alert.serious or wanted != FAILURES):
                self.wandb.alert(alert.title, alert.text, serious=alert.serious)
                sent.append(alert.key)


def sizes(run: RunDir) -> dict[str, int]:
    """Return the size of each mirrored file in bytes."""
    attempts = [*run.path.glob("attempts/*/nodes/node-*.jsonl"), *run.path.glob("attempts/*/outcome.json")]
    paths = [run.metrics, run.path / HISTOGRAMS, *run.events.files(), *attempts]
    return {path.relative_to(run.path).as_posix(): path.stat().st_size for path in sorted(paths) if path.exists()}


def is_complete(run: RunDir) -> bool:
    """Return True if the run has ended, and the server has all of it according to `keep_complete`."""
    state = read_json(run.wandb / "online.json") or {}
    return bool(state.get("ended")) and state.get("sizes") == sizes(run)


def lease_of(run: RunDir) -> Lease:
    """Return the lease for sending a run to the server."""
    return Lease(run.wandb / "online.lease")


def send_rest(run: RunDir) -> int:
    """Send the lines that the server lacks, and return their number. Raises BackendError, also if the run is being mirrored."""
    if is_complete(run) or not run.attempts():
        return 0
    lease = lease_of(run)
    if not lease.take():
        raise BackendError(f"{run.id}: another process is sending the run to W&B ({Path(run.wandb / 'online.lease')})")
    try:
        outcome = run.last_outcome()
        ending = outcome if outcome is not None and outcome.state.final else None
        before = history_lines(run.id, *project_of(run))
        mirror = Mirror(run, run.attempts()[-1], offline=False)
        mirror.finish(ending, outcome.exit_code if outcome is not None else 0)
        num_received = mirror.lines_at_server()
        if num_received < mirror.sent:
            message = f"W&B received {num_received} of {mirror.sent} lines"
            raise BackendError(f"{run.id}: {message}; `ropewalk sync {run.id}` sends the rest")
        mirror.keep_complete(ending)
        return mirror.sent - before
    finally:
        lease.give_up()

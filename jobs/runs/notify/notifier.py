"""Notification of one run's owner: collects causes into the outbox, and sends what receivers lack."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import RopewalkError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import append_lines, parse_lines
from ropewalk.cluster.run.names import NOTICES
from ropewalk.cluster.spec import Outcome
from ropewalk.jobs.runs.notify.causes import causes
from ropewalk.jobs.runs.notify.config import AnyTarget
from ropewalk.jobs.runs.notify.lease import Lease
from ropewalk.jobs.runs.notify.outbox import Message, Outbox, cause_id
from ropewalk.jobs.runs.notify.send import send
from ropewalk.jobs.runs.submit.notification import NOTIFY_SIDECAR

log = logging.getLogger(__name__)

ARRAYS = ".notify"  # beside the runs: outboxes of runs that were submitted together
RETRY_SECONDS, MOST_RETRY_SECONDS = 15.0, 300.0
DIGEST_SECONDS = 600.0  # for further causes of an array before a digest, unless all its runs have ended; doubled for each digest
MOST_NAMED = 20  # runs in a digest


def wants_notice(run: RunDir) -> bool:
    """Return True if the owner is notified of a run by itself: not of a trial or step, whose parent reports it."""
    return NOTIFY_SIDECAR in (run.record.get("sidecars") or ()) and run.parent is None


class Notifier:
    """Notifier of one run; of an array, all runs share an outbox, and the process with its lease sends digests."""

    def __init__(self, run: RunDir, targets: Sequence[AnyTarget]) -> None:
        self.run, self.targets = run, targets
        self._array: dict[str, Any] | None = run.record.get("submission")
        self._folder = run.path.parent / ARRAYS / str(self._array["id"]) if self._array else run.path / NOTICES
        self._lease = Lease(self._folder / "lease")
        self._outbox: Outbox | None = None  # while this process holds the lease
        self._pauses: dict[str, tuple[float, float]] = {}  # by receiver: time of the next attempt, and the pause before it

    def look(self, ending: Outcome | None) -> bool:
        """Collect causes and send messages. Return True if nothing is left to send. `ending`: see `causes`."""
        messages = list(causes(self.run, ending))
        self._make_folder()
        if self._array:
            self._note(messages, ended=ending is not None)
        if not self._lease.take():
            self._outbox = None
            return False
        outbox = self._outbox = self._outbox or Outbox(self._folder)
        outbox.add([each for each in (self._digests(outbox) if self._array else messages) if not outbox.has(each.id)])
        complete = [self._send_waiting(outbox, target) for target in self.targets]
        return all(complete)

    def close(self) -> None:
        """Let another process send the rest."""
        self._outbox = None
        self._lease.give_up()

    def _make_folder(self) -> None:
        """Make the outbox, which only this user may read; users may share the folder of those beside the runs."""
        if not self._folder.exists():
            if self._array and not self._folder.parent.exists():
                self._folder.parent.mkdir(exist_ok=True)
                self._folder.parent.chmod(0o1777)
            self._folder.mkdir(mode=0o700, exist_ok=True)

    def _send_waiting(self, outbox: Outbox, target: AnyTarget) -> bool:
        """Send a receiver what it lacks, in order; after an error the rest waits."""
        due, pause = self._pauses.get(target.name, (0.0, RETRY_SECONDS))
        waiting = [each for each in outbox.waiting(target.name) if each.kind in target.events]
        for message in waiting if time.monotonic() >= due else ():
            if not self._lease.renew():
                return False
            try:
                send(target, message)
            except RopewalkError as error:
                log.warning("%s; trying again in %.0f s", error, pause)
                self._pauses[target.name] = (time.monotonic() + pause, min(2 * pause, MOST_RETRY_SECONDS))
                return False
            self._pauses.pop(target.name, None)
            outbox.accepted(target.name, message)
        return not waiting or time.monotonic() >= due

    # --- arrays

    def _note(self, messages: Sequence[Message], *, ended: bool) -> None:
        """Note this run's causes, and that it has ended, where the process that sends digests finds them."""
        path = self._folder / "causes" / f"{self.run.id}.jsonl"
        noted_ids = _known(path)
        lines = [each.model_dump(mode="json") for each in messages if each.id not in noted_ids]
        lines += [{"id": "ended"}] if ended and "ended" not in noted_ids else []
        if lines:
            path.parent.mkdir(parents=True, exist_ok=True)
            append_lines(path, lines)

    def _digests(self, outbox: Outbox) -> list[Message]:
        """Return a digest for each kind of cause that none has; none while more causes may follow soon."""
        assert self._array is not None
        noted = [_known(path) for path in sorted((self._folder / "causes").glob("*.jsonl"))]
        causes = [Message.model_validate(line) for lines in noted for name, line in lines.items() if name != "ended"]
        new = [cause for cause in causes if not outbox.has(cause.id)]
        all_ended = sum("ended" in lines for lines in noted) >= int(self._array["runs"])
        patience = DIGEST_SECONDS * 2 ** len(outbox.messages)
        if not new or not (all_ended or time.time() - min(cause.time for cause in new) > patience):
            return []
        by_kind = {kind: [cause for cause in new if cause.kind == kind] for kind in sorted({cause.kind for cause in new})}
        return [self._digest(of_kind) for of_kind in by_kind.values()]

    def _digest(self, of_kind: Sequence[Message]) -> Message:
        assert self._array is not None
        ids, first = tuple(sorted(cause.id for cause in of_kind)), min(of_kind, key=lambda cause: cause.time)
        runs = sorted({cause.run for cause in of_kind})
        title = f"{first.kind.replace('_', ' ')}: {len(runs)} of {self._array['runs']} runs, such as {first.run}"
        more = f" and {len(runs) - MOST_NAMED} more" if len(runs) > MOST_NAMED else ""
        text = f"{', '.join(runs[:MOST_NAMED])}{more}\n\nThe first: {first.text}"
        return Message(
            id=cause_id("digest", *ids), kind=first.kind, run=first.run, title=title, text=text, time=first.time, causes=ids
        )


def _known(path: Path) -> dict[str, dict[str, Any]]:
    """Return the lines of a file of causes by id."""
    lines = parse_lines(path.read_bytes())[0] if path.exists() else []
    return {str(line["id"]): line for line in lines if "id" in line}

"""Outbox of notifications: messages in order, and the record of what each receiver has accepted."""

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from ropewalk.cluster.fresh_reads import read_afresh
from ropewalk.cluster.run.files import append_lines, parse_lines, sync_all
from ropewalk.cluster.secrets.plain_text import mask_secret_text
from ropewalk.jobs.runs.notify.config import Kind

MESSAGES, SENT = "outbox.jsonl", "sent.jsonl"


class Message(BaseModel):
    """A notification, as receivers get it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str  # hash of its cause: the same however often it is sent
    kind: Kind
    run: str
    title: str
    text: str
    time: float  # when it was noticed, in seconds since the epoch
    causes: tuple[str, ...] = ()  # ids of the events of a digest


def cause_id(*parts: str) -> str:
    """Return the id of a cause from what identifies it."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def message(run: str, kind: Kind, key: str, title: str, text: str) -> Message:
    """Make a message about a cause, with secrets masked that errors may contain."""
    title, text = mask_secret_text(title), mask_secret_text(text)
    return Message(id=cause_id(run, key), kind=kind, run=run, title=title, text=text, time=time.time())


class Outbox:
    """Files of a folder. Only the process that holds the folder's lease may write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.messages = [Message.model_validate(line) for line in _lines(folder / MESSAGES)]
        self._ids = {each for message in self.messages for each in (message.id, *message.causes)}
        self._sent = {(line.get("target"), line.get("id")) for line in _lines(folder / SENT)}

    def has(self, cause: str) -> bool:
        """Return True if a message about a cause is in the outbox, or in a digest there."""
        return cause in self._ids

    def add(self, messages: Sequence[Message]) -> None:
        """Append messages durably, before any of them is sent."""
        if messages:
            _append(self.folder / MESSAGES, [message.model_dump(mode="json") for message in messages])
            self.messages += messages
            self._ids |= {each for message in messages for each in (message.id, *message.causes)}

    def waiting(self, target: str) -> list[Message]:
        """Return what a receiver has not accepted yet, in order."""
        return [message for message in self.messages if (target, message.id) not in self._sent]

    def accepted(self, target: str, message: Message) -> None:
        """Record durably that a receiver has accepted a message."""
        _append(self.folder / SENT, [{"target": target, "id": message.id, "time": time.time()}])
        self._sent.add((target, message.id))


def _append(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    append_lines(path, lines)
    sync_all([path])


def _lines(path: Path) -> list[dict[str, Any]]:
    return [line for line in parse_lines(read_afresh(path))[0] if "id" in line] if path.exists() else []

"""What is known of an exchange besides its bytes: who answered, how it ended, where its time went."""

import time
from dataclasses import dataclass, field
from typing import Any, Literal

Outcome = Literal["completed", "cancelled", "deadline", "failed", "refused"]


@dataclass
class Record:
    """Who answered, and how it ended."""

    id: str
    path: str
    alias: str = ""
    version: str = ""
    replica: str = ""
    status: int = 0
    outcome: Outcome = "completed"
    moves: int = 0
    first_token_seconds: float | None = None

    def note(self) -> dict[str, Any]:
        """What a successor of this gateway must know, in few bytes."""
        return {"a": self.alias, "v": self.version, "r": self.replica, "m": self.moves, "f": self.first_token_seconds}

    def take(self, note: dict[str, Any]) -> None:
        """Take over what `note` gave."""
        self.alias, self.version = note.get("a", ""), note.get("v", "")
        self.replica, self.moves = note.get("r", ""), note.get("m", 0) + 1
        self.first_token_seconds = note.get("f")


@dataclass
class Clock:
    """Where the time of an exchange goes: waiting for a slot, in this gateway, in the engine."""

    arrived: float  # seconds since the epoch
    began: float = field(default_factory=time.monotonic)
    queue_seconds: float = 0.0
    engine_seconds: float = 0.0  # from the request at the engine to its first byte
    gateway_seconds: float = 0.0  # the rest, to the first byte for the client
    working_seconds: float = 0.0  # in this gateway, for all pieces after the first
    pieces: int = 0
    first_at: float = 0.0
    last_at: float = 0.0
    _queued: float = 0.0
    _asked: float = 0.0

    def queued(self) -> None:
        """It begins to wait for a slot."""
        self._queued = time.monotonic()

    def dispatched(self) -> None:
        """It has a slot."""
        now = time.monotonic()
        if self._queued and not self.pieces:
            self.queue_seconds += now - self._queued
        self._asked = now

    def replied(self) -> None:
        """The engine has begun to answer."""
        if not self.pieces:
            self.engine_seconds = time.monotonic() - self._asked

    def handed_on(self, began: float) -> None:
        """A piece that was taken at `began` is on its way to the client."""
        now = time.monotonic()
        if not self.pieces:
            self.first_at = now
            self.engine_seconds = began - self._asked
            self.gateway_seconds = max(0.0, now - self.began - self.queue_seconds - self.engine_seconds)
        else:
            self.working_seconds += now - began
        self.last_at = now
        self.pieces += 1

    @property
    def first_seconds(self) -> float:
        """From the request to the first byte of its answer, as far as this gateway saw it."""
        return self.first_at - self.began

    def seconds(self) -> float:
        """Since the request arrived, whichever gateway took it."""
        return time.time() - self.arrived

    def timing(self) -> bytes:
        """The header Server-Timing: what was spent before the answer began, in milliseconds."""
        spent = time.monotonic() - self.began
        mine = max(0.0, spent - self.queue_seconds - self.engine_seconds)
        parts = ("queue", self.queue_seconds), ("engine", self.engine_seconds), ("gateway", mine)
        return ", ".join(f"{name};dur={1000 * seconds:.2f}" for name, seconds in parts).encode()

"""Metadata of an exchange: replica, outcome, and timing."""

import time
from dataclasses import dataclass, field

from ropewalk.jobs.serving.feedback.exchange import Outcome


@dataclass
class Record:
    """Replica and outcome of an exchange."""

    id: str
    path: str
    alias: str = ""
    version: str = ""
    replica: str = ""
    status: int = 0
    outcome: Outcome = "completed"
    moves: int = 0
    first_token_seconds: float | None = None


@dataclass
class Clock:
    """Timing of an exchange: queue, gateway, engine."""

    arrived: float = field(default_factory=time.time)  # seconds since the epoch
    began: float = field(default_factory=time.monotonic)
    queue_seconds: float = 0.0
    engine_seconds: float = 0.0  # from the request to the engine to its first byte
    gateway_seconds: float = 0.0  # the rest of the time to the client's first byte
    working_seconds: float = 0.0  # gateway time of all pieces after the first
    pieces: int = 0
    first_at: float = 0.0
    last_at: float = 0.0
    _queued_at: float = 0.0
    _dispatched_at: float = 0.0

    def mark_queued(self) -> None:
        self._queued_at = time.monotonic()

    def mark_dispatched(self) -> None:
        """Stop waiting: a slot was assigned."""
        now = time.monotonic()
        if self._queued_at and not self.pieces:
            self.queue_seconds += now - self._queued_at
        self._dispatched_at = now

    def mark_replied(self) -> None:
        if not self.pieces:
            self.engine_seconds = time.monotonic() - self._dispatched_at

    def mark_forwarded(self, began: float) -> None:
        """Record that a piece received at `began` is on its way to the client."""
        now = time.monotonic()
        if not self.pieces:
            self.first_at = now
            self.engine_seconds = began - self._dispatched_at
            self.gateway_seconds = max(0.0, now - self.began - self.queue_seconds - self.engine_seconds)
        else:
            self.working_seconds += now - began
        self.last_at = now
        self.pieces += 1

    @property
    def first_seconds(self) -> float:
        """Time from the request to the first byte of its answer."""
        return self.first_at - self.began

    def seconds(self) -> float:
        """Return the time since the request arrived."""
        return time.monotonic() - self.began

    def timing(self) -> str:
        """Return the Server-Timing header: the time before the answer, in milliseconds."""
        spent = time.monotonic() - self.began
        gateway_seconds = max(0.0, spent - self.queue_seconds - self.engine_seconds)
        parts = ("queue", self.queue_seconds), ("engine", self.engine_seconds), ("gateway", gateway_seconds)
        return ", ".join(f"{name};dur={1000 * seconds:.2f}" for name, seconds in parts)

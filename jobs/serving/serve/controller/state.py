"""State of a serving run as written by its controller: versions with their phases, and the split of traffic.

Durations are measured by the machine's monotonic clock, which all controllers of an attempt share: they run on one node.
"""

import time
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from ropewalk.cluster.run.files import read_json


class Phase(StrEnum):
    """Phase of a version."""

    LOADING = "loading"  # its replicas are starting
    PROBING = "probing"  # its probe is running
    READY = "ready"  # loaded: it serves, is a canary, or is kept as the previous version
    REFUSED = "refused"  # it gets no traffic and has no replicas; see `cause`
    LEAVING = "leaving"  # it gets no new requests; its replicas stop once their streams have ended


class _State(BaseModel):
    model_config = ConfigDict(extra="ignore")


class Version(_State):
    """One version of the model."""

    app: str  # Ray Serve application; a version that is tried again gets a new one
    phase: Phase = Phase.LOADING
    entered: float  # start of the phase, monotonic seconds
    since: float = Field(default_factory=time.time)  # the same in seconds since the epoch, for display only
    cause: str = ""  # reason for the refusal
    barred: bool = False  # refused by its gate, before it was loaded
    trusted: bool = False  # it has passed its canary or has served


class Canary(_State):
    """The version that gets a share of the traffic, with the gateway's counts at its start."""

    version: str
    started: float  # monotonic seconds
    requests: int = 0
    errors: int = 0
    decides: bool = True  # takes over once it has passed; False: keeps its share while the canary alias points to it


class ServingState(_State):
    """State that a restarted controller needs."""

    attempt: int  # owner of the applications; the next attempt starts with none
    alias: str = "default"
    versions: dict[str, Version] = {}
    stable: str | None = None
    canary: Canary | None = None
    previous: str | None = None
    previous_until: float = 0.0  # monotonic seconds
    applications: int = 0  # number started so far, so that names are never reused

    @classmethod
    def read(cls, path: Path) -> "ServingState | None":
        """Read the state; None if there is none."""
        record = read_json(path)
        return None if record is None else cls.model_validate(record)

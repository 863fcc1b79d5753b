"""What a serving run serves, as its controller writes it down: versions with their phases, and who gets the traffic."""

from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ropewalk.cluster.run.files import read_json, write_json


class Phase(StrEnum):
    """What a version is doing."""

    LOADING = "loading"  # its replicas start
    PROBING = "probing"  # it is asked its first question
    READY = "ready"  # it answers: it serves, waits for its canary's verdict, or is kept as the version before
    REFUSED = "refused"  # it has no traffic and no replicas, and `cause` says why
    LEAVING = "leaving"  # it gets no new requests; its replicas go as soon as their streams have ended


class _State(BaseModel):
    model_config = ConfigDict(extra="ignore")


class Version(_State):
    """One version of the model."""

    app: str  # its Ray Serve application; a version that is tried again has a new one
    phase: Phase = Phase.LOADING
    since: float  # when the phase began, seconds since the epoch
    cause: str = ""  # why it was refused
    barred: bool = False  # it was refused by its gate, before it was loaded
    trusted: bool = False  # it has passed its canary, or served already


class Canary(_State):
    """The version that gets a share, and the counts when that began."""

    version: str
    since: float
    requests: int = 0
    errors: int = 0
    decides: bool = True  # it takes over once it has passed; false: it keeps its share as long as an alias names it


class ServingState(_State):
    """All that a new controller must know of the one before."""

    attempt: int  # whose applications they are: the next attempt begins with none
    alias: str = "default"
    versions: dict[str, Version] = {}
    stable: str | None = None
    canary: Canary | None = None
    previous: str | None = None
    previous_until: float = 0.0
    applications: int = 0  # how many were started so far: their names are never used twice

    @classmethod
    def read(cls, path: Path) -> "ServingState | None":
        """The state that the last controller wrote; None where there is none."""
        found = read_json(path)
        return None if found is None else cls.model_validate(found)

    def write(self, path: Path) -> None:
        """Write the state, for a successor and for `show`."""
        write_json(path, self.model_dump(mode="json"), durable=False)

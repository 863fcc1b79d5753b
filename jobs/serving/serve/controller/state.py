"""State of a serving run as written by its controller: versions with their phases, and the split of traffic.

Durations are measured by the machine's monotonic clock, which all controllers of an attempt share: they run on one node.
"""

import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ropewalk.cluster.run.files import read_json
from ropewalk.jobs.serving.serve import routes


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

    def build_routes(
        self,
        replicas: Mapping[str, Sequence[Mapping[str, Any]]],
        models: Mapping[str, str],
        names: Sequence[str],
        share: float,
        *,
        accepting: bool = True,
    ) -> routes.Routes:
        """Return the gateway's routes: `replicas` serve by version, `names` are more names of the alias, `share` the canary's."""
        versions = {
            name: routes.Version(
                replicas=tuple(
                    routes.Replica(id=record["id"], url=record["url"], engine=record["engine"], slots=record["slots"])
                    for record in replicas.get(name, ())
                ),
                model=models.get(name, ""),
                draining=version.phase is Phase.LEAVING,
            )
            for name, version in self.versions.items()
            if version.phase in {Phase.READY, Phase.LEAVING}
        }
        aliases: dict[str, routes.Alias] = {}
        # until the first version is ready, requests wait for the one that is loading
        stable = self.stable or next((name for name, each in self.versions.items() if each.phase is not Phase.REFUSED), None)
        if stable is not None:
            versions.setdefault(stable, routes.Version(model=models.get(stable, "")))
            canary = self.canary.version if self.canary is not None and self.canary.version in versions else None
            to = routes.Alias(stable=stable, canary=canary, share=share if canary is not None else 0.0)
            aliases = {name: to for name in (self.alias, *names) if name not in versions}
        default = self.alias if self.alias in aliases else stable
        return routes.Routes(versions=versions, aliases=aliases, default=default, accepting=accepting)

"""Routes for the gateway, built from the serving state and the observed replicas."""

from collections.abc import Mapping, Sequence
from typing import Any

from ropewalk.jobs.serving.serve.controller.state import Phase, ServingState
from ropewalk.jobs.serving.serve.routes import Alias, Replica, Routes, Version

_ROUTED = frozenset({Phase.READY, Phase.LEAVING})


def build_routes(
    state: ServingState,
    replicas: Mapping[str, Sequence[Mapping[str, Any]]],
    models: Mapping[str, str],
    names: Sequence[str],
    share: float,
    *,
    accepting: bool = True,
    retry_after: int = 5,
) -> Routes:
    """Build the routes: `replicas` are serving ones by version, `names` more names of the alias, `share` the canary's share."""
    versions = {
        name: Version(
            replicas=tuple(_replica(record) for record in replicas.get(name, ())),
            model=models.get(name, ""),
            draining=version.phase is Phase.LEAVING,
        )
        for name, version in state.versions.items()
        if version.phase in _ROUTED
    }
    aliases: dict[str, Alias] = {}
    # until the first version is ready, requests wait for the one that is loading
    stable = state.stable or next((name for name, version in state.versions.items() if version.phase is not Phase.REFUSED), None)
    if stable is not None:
        versions.setdefault(stable, Version(model=models.get(stable, "")))
        canary = state.canary.version if state.canary is not None and state.canary.version in versions else None
        to = Alias(stable=stable, canary=canary, share=share if canary is not None else 0.0)
        aliases = {name: to for name in (state.alias, *names) if name not in versions}
    default = state.alias if state.alias in aliases else stable
    return Routes(versions=versions, aliases=aliases, default=default, accepting=accepting, retry_after=retry_after)


def _replica(record: Mapping[str, Any]) -> Replica:
    return Replica(id=str(record["id"]), url=str(record["url"]), engine=str(record["engine"]), slots=int(record["slots"]))

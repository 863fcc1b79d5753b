"""Availability of the engines on this machine: lines of `ropewalk doctor`."""

from ropewalk.cluster.backends.base import Check
from ropewalk.jobs.inference.engines.engine import EngineOptions
from ropewalk.jobs.inference.engines.find import engine_names, find_engine


def engine_checks() -> list[Check]:
    """Return one check per engine; an engine that is not available is not an error."""
    checks = []
    for name in engine_names():
        reason = find_engine(name).unavailable(EngineOptions())
        checks.append(Check(name=f"engine {name}", ok=reason is None, detail=reason or "available", optional=True))
    return checks

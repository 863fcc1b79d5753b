"""Which engines this machine can run, and how to get the others: lines of `ropewalk doctor`."""

from ropewalk.cluster.backends.base import Check
from ropewalk.jobs.inference.engines.engine import EngineOptions
from ropewalk.jobs.inference.engines.find import engine_names, find_engine


def engine_checks() -> list[Check]:
    """A line an engine; one that is not here is no fault of the machine's."""
    found = []
    for name in engine_names():
        why = find_engine(name).unavailable(EngineOptions())
        found.append(Check(name=f"engine {name}", ok=True, detail="runs here" if why is None else f"not here: {why}"))
    return found

"""Engines by name: built in, or from the entry-point group."""

import difflib
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.inference.engines.engine import GROUP, Engine, EngineOptions

BUILT_IN = {
    "transformers": "ropewalk.jobs.inference.engines.transformers.plugin:TransformersEngine",
    "llamacpp": "ropewalk.jobs.inference.engines.llamacpp.plugin:LlamaCppEngine",
    "vllm": "ropewalk.jobs.inference.engines.vllm:VllmEngine",
}
PREFERRED = ("llamacpp", "transformers")  # without a choice of the user: the first one available
PREFERRED_ON_GPUS = ("transformers",)  # llamacpp computes on the CPU


def engine_names() -> list[str]:
    """Return the names of all registered engines, available or not."""
    return [*BUILT_IN, *sorted({point.name for point in entry_points(group=GROUP)} - BUILT_IN.keys())]


def find_engine(name: str, model: Path | None = None, gpus: int | None = None) -> Engine:
    """Return the engine with this name; `auto` chooses one for a model and a number of GPUs.

    Raises ConfigError that suggests the nearest name.
    """
    if name == "auto":
        return default_engine(model, gpus)
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        return _create(getattr(import_module(module), attribute))
    for point in entry_points(group=GROUP):
        if point.name == name:
            return _create(point.load())
    near = difflib.get_close_matches(name, ["auto", *engine_names()], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"engine: there is no engine {name!r}{hint}; known: auto, {', '.join(engine_names())}")


def default_engine(model: Path | None = None, gpus: int | None = None) -> Engine:
    """Return the preferred engine that is available on this machine and loads the model, if possible one that uses its GPUs.

    Raises ConfigError if there is none.
    """
    for engine in map(find_engine, (*(PREFERRED_ON_GPUS if gpus else ()), *PREFERRED)):
        if engine.unavailable(EngineOptions()) is None and (model is None or engine.refuses(model) is None):
            return engine
    raise ConfigError("engine: none is available on this machine; pip install 'ropewalk[serve]'")


def _create(factory: Any) -> Engine:
    engine: Engine = factory()
    return engine

"""Engines by name: those of this program, and those of the entry-point group."""

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
PREFERRED = ("llamacpp", "transformers")  # where a user names none: the first that runs on this machine
PREFERRED_ON_GPUS = ("transformers",)  # llamacpp computes on the CPU


def engine_names() -> list[str]:
    """The names of all engines that are known here, whether they can run or not."""
    return [*BUILT_IN, *sorted({point.name for point in entry_points(group=GROUP)} - BUILT_IN.keys())]


def find_engine(name: str, model: Path | None = None, gpus: int | None = None) -> Engine:
    """The engine of a name; `auto` is the default one of a model on so many GPUs. Raises ConfigError with the nearest name."""
    if name == "auto":
        return default_engine(model, gpus)
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        return _made(getattr(import_module(module), attribute))
    for point in entry_points(group=GROUP):
        if point.name == name:
            return _made(point.load())
    near = difflib.get_close_matches(name, ["auto", *engine_names()], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"engine: there is no engine {name!r}{hint}; known: auto, {', '.join(engine_names())}")


def default_engine(model: Path | None = None, gpus: int | None = None) -> Engine:
    """The preferred engine of those that can run on this machine, use its GPUs, and load the model. Raises ConfigError if none
    can.
    """
    for engine in map(find_engine, PREFERRED_ON_GPUS if gpus else PREFERRED):
        if engine.unavailable(EngineOptions()) is None and (model is None or engine.refuses(model) is None):
            return engine
    raise ConfigError("engine: none runs on this machine; pip install 'ropewalk[serve]'")


def _made(factory: Any) -> Engine:
    engine: Engine = factory()
    return engine

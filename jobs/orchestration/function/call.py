"""A function and its arguments on their way to a run and back: plain values, or pickles in the run's own directory."""

import json
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import ConfigError

CALL = "call.pkl"  # in the run's directory, beside run.yaml: written by whoever submits, read by the run alone
RESULT = "result.pkl"  # in the attempt's directory


def name_of(function: Callable[..., object]) -> str:
    """`module:name` of a function that can be imported. Raises ConfigError for one that cannot."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module in (None, "__main__") or "<" in name:
        what = name or repr(function)
        raise ConfigError(f"{what} cannot be imported by a run: move it to a module, or submit it with by_value=True")
    return f"{module}:{name}"


def plain(args: Sequence[object], kwargs: Mapping[str, object]) -> tuple[list[Any], dict[str, Any]]:
    """The arguments as JSON brings them to the run. Raises ConfigError for what is no plain value."""
    try:
        texts = json.dumps([list(args), dict(kwargs)], allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the arguments are no plain values ({error}); submit them with by_value=True") from None
    found: tuple[list[Any], dict[str, Any]] = tuple(json.loads(texts))
    return found


def write_call(folder: Path, function: Callable[..., object], args: Sequence[object], kwargs: Mapping[str, object]) -> None:
    """Pickle a call into a run's directory, which only its owner can write to."""
    import cloudpickle

    (folder / CALL).write_bytes(cloudpickle.dumps((function, tuple(args), dict(kwargs))))


def read_call(folder: Path) -> tuple[Callable[..., object], tuple[object, ...], dict[str, object]]:
    """The call that was pickled into a run's directory at its submission."""
    import cloudpickle

    found: tuple[Callable[..., object], tuple[object, ...], dict[str, object]] = cloudpickle.loads((folder / CALL).read_bytes())
    return found


def write_result(attempt: Path, value: object) -> None:
    """Pickle a result into its attempt's directory."""
    import cloudpickle

    (attempt / RESULT).write_bytes(cloudpickle.dumps(value))


def read_result(attempt: Path) -> object:
    """The pickled result of an attempt."""
    import cloudpickle

    return cloudpickle.loads((attempt / RESULT).read_bytes())


def import_function(name: str) -> Callable[..., object]:
    """The function of `module:name`. Raises ConfigError if there is none."""
    module, _, attributes = name.partition(":")
    try:
        found: Any = import_module(module)
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ConfigError(f"function: {name} cannot be imported where the run stands: {error}") from error
    function: Callable[..., object] = found
    return function

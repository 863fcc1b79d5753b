"""Transfer of a function call to a run and of its result back: as JSON values, or pickled in the run's directory."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import ConfigError

CALL = "call.pkl"  # in the run's directory; written at submission, read by the run
RESULT = "result.pkl"  # in the attempt's directory


def import_path(function: Callable[..., object]) -> str:
    """Return `module:name` of a function. Raises ConfigError if it cannot be imported."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module in (None, "__main__") or "<" in name:
        label = name or repr(function)
        raise ConfigError(f"{label} cannot be imported by the run: move it to a module, or submit it with by_value=True")
    return f"{module}:{name}"


def json_arguments(args: Sequence[object], kwargs: Mapping[str, object]) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments after a round trip through JSON. Raises ConfigError for other values."""
    try:
        texts = json.dumps([list(args), dict(kwargs)], allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the arguments are not JSON values ({error}); submit them with by_value=True") from None
    arguments: tuple[list[Any], dict[str, Any]] = tuple(json.loads(texts))
    return arguments


def write_call(folder: Path, function: Callable[..., object], args: Sequence[object], kwargs: Mapping[str, object]) -> None:
    """Pickle a call into a run's directory, which only the owner can write to."""
    import cloudpickle

    (folder / CALL).write_bytes(cloudpickle.dumps((function, tuple(args), dict(kwargs))))


def read_call(folder: Path) -> tuple[Callable[..., object], tuple[object, ...], dict[str, object]]:
    """Return the call pickled in a run's directory."""
    import cloudpickle

    call: tuple[Callable[..., object], tuple[object, ...], dict[str, object]] = cloudpickle.loads((folder / CALL).read_bytes())
    return call


def write_result(attempt: Path, value: object) -> None:
    """Pickle a result into the attempt's directory."""
    import cloudpickle

    (attempt / RESULT).write_bytes(cloudpickle.dumps(value))


def read_result(attempt: Path, *, from_anyone: bool = False) -> object:
    """Return the pickled result of an attempt.

    Raises ConfigError if the file belongs to another user, whose code would run, unless `from_anyone`: this process has
    submitted the run.
    """
    import cloudpickle

    with (attempt / RESULT).open("rb") as file:
        owner = os.fstat(file.fileno()).st_uid
        if owner != os.geteuid() and not from_anyone:
            raise ConfigError(
                f"{attempt / RESULT}: belongs to uid {owner}, and unpickling runs code of that user; get the result as that user,"
                " or have the function return JSON values without by_value"
            )
        return cloudpickle.load(file)


def import_function(name: str) -> Callable[..., object]:
    """Import the function `module:name`. Raises ConfigError if it does not exist."""
    module, _, attributes = name.partition(":")
    try:
        target: Any = import_module(module)
        for attribute in attributes.split("."):
            target = getattr(target, attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ConfigError(f"function: {name} cannot be imported by the run: {error}") from error
    function: Callable[..., object] = target
    return function

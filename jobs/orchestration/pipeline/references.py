"""References from a step of a pipeline to another step's run, output, or any of its keys."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import ConfigError

RUN_KEYS = frozenset({"run", "model", "teacher", "reference"})  # a step's name as a value stands for its run
OUTPUT_KEYS = frozenset({"data"})  # a step's name as a value stands for its output
_REFERENCE = re.compile(r"\{([A-Za-z0-9][A-Za-z0-9_-]*)\.([A-Za-z_][\w.]*)\}")


@dataclass(frozen=True)
class StepResult:
    """The run id and the keys of a step."""

    run: str
    keys: Mapping[str, Any]

    def get(self, key: str) -> Any:
        """Return the value of a dotted key (`run` is the id), or None if there is no such key or it is unset."""
        if key == "run":
            return self.run
        value: Any = self.keys
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value


def referenced_steps(values: Any, steps: Collection[str], key: str = "") -> set[str]:
    """Return the steps that the keys of a job refer to."""
    if isinstance(values, Mapping):
        return set().union(*(referenced_steps(value, steps, str(name)) for name, value in values.items()))
    if isinstance(values, list):
        return set().union(*(referenced_steps(value, steps, key) for value in values))
    if not isinstance(values, str):
        return set()
    if key in RUN_KEYS | OUTPUT_KEYS and values in steps:
        return {values}
    return {match[1] for match in _REFERENCE.finditer(values) if match[1] in steps}


def refuse_misspelt(values: Any, step: str, keys: Mapping[str, Collection[str]], key: str = "") -> None:
    """Raise ConfigError for {NAME.KEY} if NAME is the step itself, and where NAME resembles a step's name and is nothing else.

    `keys` maps each step to the keys of its job. Other braces, and ${NAME.KEY}, belong to the program.
    """
    if isinstance(values, Mapping):
        for name, value in values.items():
            refuse_misspelt(value, step, keys, str(name))
    elif isinstance(values, list):
        for value in values:
            refuse_misspelt(value, step, keys, key)
    if not isinstance(values, str):
        return
    is_path = key not in OUTPUT_KEYS or values in keys or Path(values).exists()
    if not is_path and (near := get_close_matches(values, keys, n=1, cutoff=0.75)):
        raise ConfigError(f"steps.{step}: {key}: {values} does not exist; did you mean the step {near[0]!r}?")
    for match in _REFERENCE.finditer(values):
        if match.start() and match.string[match.start() - 1] == "$":
            continue
        name, of_step = match[1], match[2].partition(".")[0]
        if name == step and of_step in {"run", *keys[step]}:
            raise ConfigError(f"steps.{step}: {match[0]}: a step cannot refer to itself; name another step")
        if match[2] == "run" and name not in keys and (near := get_close_matches(name, keys, n=1, cutoff=0.75)):
            hint = f"did you mean {{{near[0]}.run}}? steps: {', '.join(keys)}"
            raise ConfigError(f"steps.{step}: {match[0]}: no step {name!r}; {hint}")


def resolve_references(values: Any, results: Mapping[str, StepResult], where: str, key: str = "") -> Any:
    """Return the keys of a job with references replaced by their values. Raises ConfigError for an unknown key."""
    if isinstance(values, Mapping):
        return {name: resolve_references(value, results, where, str(name)) for name, value in values.items()}
    if isinstance(values, list):
        return [resolve_references(value, results, where, key) for value in values]
    if not isinstance(values, str):
        return values
    if key in RUN_KEYS and values in results:
        return results[values].run
    if key in OUTPUT_KEYS and values in results:
        return _value(results, values, "output", f"{key}: {values}")

    def replace(match: re.Match[str]) -> str:
        return str(_value(results, match[1], match[2], match[0])) if match[1] in results else match[0]

    return _REFERENCE.sub(replace, values)


def _value(results: Mapping[str, StepResult], step: str, key: str, reference: str) -> Any:
    value = results[step].get(key)
    if value is None or isinstance(value, (Mapping, list)):
        scalars = ", ".join(name for name, item in results[step].keys.items() if isinstance(item, (str, int, float)))
        raise ConfigError(f"{reference}: the step {step!r} has no {key!r}; it has run, {scalars}")
    return value

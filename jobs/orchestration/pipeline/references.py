"""How a step of a pipeline names what another one makes: its run, its output, or any of its keys."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from ropewalk.cluster.errors import ConfigError

RUN_KEYS = frozenset({"run", "model", "teacher", "reference"})  # a step's name as their value is the step's run
OUTPUT_KEYS = frozenset({"data"})  # and here it is the step's output
_PLACE = re.compile(r"\{([A-Za-z0-9][A-Za-z0-9_-]*)\.([A-Za-z_][\w.]*)\}")


@dataclass(frozen=True)
class Made:
    """What is known of a step: the id of its run, and its keys."""

    run: str
    keys: Mapping[str, Any]

    def get(self, key: str) -> Any:
        """A key by its dotted name; `run` is the id. None: there is none, or it is unset."""
        if key == "run":
            return self.run
        found: Any = self.keys
        for part in key.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        return found


def referenced(values: Any, steps: Collection[str], key: str = "") -> set[str]:
    """The steps that the keys of a job refer to."""
    if isinstance(values, Mapping):
        return set().union(*(referenced(value, steps, str(name)) for name, value in values.items()))
    if isinstance(values, list):
        return set().union(*(referenced(value, steps, key) for value in values))
    if not isinstance(values, str):
        return set()
    if key in RUN_KEYS | OUTPUT_KEYS and values in steps:
        return {values}
    return {match[1] for match in _PLACE.finditer(values) if match[1] in steps}


def refuse_misspelt(values: Any, own: str, keys: Mapping[str, Collection[str]]) -> None:
    """Raise ConfigError for {NAME.KEY} where NAME is the step itself, and for {NAME.run} where it is almost a step's name.

    `keys` has those of each step. Other braces are the program's own business, and ${NAME.KEY} is.
    """
    if isinstance(values, Mapping | list):
        for value in values.values() if isinstance(values, Mapping) else values:
            refuse_misspelt(value, own, keys)
    for match in _PLACE.finditer(values) if isinstance(values, str) else ():
        if match.start() and match.string[match.start() - 1] == "$":
            continue
        name, key = match[1], match[2].partition(".")[0]
        if name == own and key in {"run", *keys[own]}:
            raise ConfigError(f"steps.{own}: {match[0]}: a step cannot refer to itself; name another step")
        if match[2] == "run" and name not in keys and (near := get_close_matches(name, keys, n=1, cutoff=0.75)):
            hint = f"did you mean {{{near[0]}.run}}? steps: {', '.join(keys)}"
            raise ConfigError(f"steps.{own}: {match[0]}: no step {name!r}; {hint}")


def fill(values: Any, made: Mapping[str, Made], where: str, key: str = "") -> Any:
    """The keys of a job with what other steps make in the place of their names. Raises ConfigError for what none of them has."""
    if isinstance(values, Mapping):
        return {name: fill(value, made, where, str(name)) for name, value in values.items()}
    if isinstance(values, list):
        return [fill(value, made, where, key) for value in values]
    if not isinstance(values, str):
        return values
    if key in RUN_KEYS and values in made:
        return made[values].run
    if key in OUTPUT_KEYS and values in made:
        return _value(made, values, "output", f"{key}: {values}")

    def replaced(match: re.Match[str]) -> str:
        return str(_value(made, match[1], match[2], match[0])) if match[1] in made else match[0]

    return _PLACE.sub(replaced, values)


def _value(made: Mapping[str, Made], step: str, key: str, said: str) -> Any:
    found = made[step].get(key)
    if found is None or isinstance(found, (Mapping, list)):
        known = ", ".join(name for name, value in made[step].keys.items() if isinstance(value, (str, int, float)))
        raise ConfigError(f"{said}: the step {step!r} has no {key!r}; it has run, {known}")
    return found

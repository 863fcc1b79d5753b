"""What a sweep tries: ranges and choices for dotted keys of the base job, some of them only under a condition."""

import itertools
import json
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from ropewalk.cluster.config import Section

if TYPE_CHECKING:
    from ray.tune.search.sample import Domain

Range = tuple[float, float]
SCALARS = (str, int, float, bool, type(None))


class Parameter(Section):
    """The values that one key may take: exactly one of the kinds, by Ray Tune's names."""

    uniform: Range | None = Field(default=None, description="[low, high]")
    loguniform: Range | None = Field(default=None, description="[low, high], each order of magnitude equally likely")
    quniform: tuple[float, float, float] | None = Field(default=None, description="[low, high, step], rounded to the step")
    qloguniform: tuple[float, float, float] | None = Field(default=None, description="[low, high, step] on a logarithmic scale")
    randint: tuple[int, int] | None = Field(default=None, description="[low, high): whole numbers without the upper end")
    choice: list[Any] | None = Field(default=None, min_length=1, description="one of these")
    grid: list[Any] | None = Field(default=None, min_length=1, description="each of these, crossed with all other grids")
    when: dict[str, Any] = Field(default={}, description="only where other keys of the space have these values (one, or a list)")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"set exactly one of {', '.join(KINDS)}")
        if self.values is None:
            low, high, *step = getattr(self, given[0])
            if not low < high:
                raise ValueError(f"{given[0]}: the range must rise; {low} is not below {high}")
            if "log" in given[0] and low <= 0:
                raise ValueError(f"{given[0]}: a logarithmic range must begin above 0, is {low}")
            if step and not 0 < step[0] <= high - low:
                raise ValueError(f"{given[0]}: the step must lie between 0 and the width of the range, is {step[0]}")
        return self

    @property
    def kind(self) -> str:
        """The name of the kind that is set."""
        return next(name for name in KINDS if getattr(self, name) is not None)

    @property
    def values(self) -> list[Any] | None:
        """All values, where there are finitely many; None for a range."""
        return self.choice if self.choice is not None else self.grid

    @property
    def extremes(self) -> list[Any]:
        """Values that are valid only if all are: the ends of a range, each value of a choice."""
        if self.values is not None:
            return self.values
        low, high, *_ = getattr(self, self.kind)
        return [low, high - 1 if self.kind == "randint" else high]

    def domain(self, *, crossed: bool) -> "Domain | dict[str, Any]":
        """The parameter as Ray Tune's own object; `crossed` values are combined with those of other keys, else one is drawn."""
        from ray import tune

        if self.values is not None:
            names = [encoded(value) for value in self.values]
            found: Domain | dict[str, Any] = tune.grid_search(names) if crossed else tune.choice(names)
            return found
        made: Domain = getattr(tune, self.kind)(*getattr(self, self.kind))
        return made


KINDS = ("uniform", "loguniform", "quniform", "qloguniform", "randint", "choice", "grid")
Space = dict[str, Parameter]


def encoded(value: Any) -> Any:
    """A value as a search may carry it: scalars as they are, lists and mappings as their text."""
    return value if isinstance(value, SCALARS) else json.dumps(value, sort_keys=True)


def decoded(parameter: Parameter, value: Any) -> Any:
    """The value that `encoded` was given; numpy's numbers as Python's."""
    if parameter.values is not None:
        return next((own for own in parameter.values if encoded(own) == value), value)
    return value.item() if hasattr(value, "item") else value


def wrong_conditions(space: Space) -> list[str]:
    """What is wrong with the `when` of a space, in words."""
    found = []
    for key, parameter in space.items():
        for other, wanted in parameter.when.items():
            values = space[other].values if other in space else None
            if other not in space:
                found.append(f"{key}.when: {other} is not a key of the space")
            elif values is None:
                found.append(f"{key}.when: {other} is a range; conditions are on a choice or a grid")
            elif strange := [value for value in _listed(wanted) if value not in values]:
                found.append(f"{key}.when: {other} never is {strange[0]!r}; it is one of {values}")
    try:
        list(_sorter(space).static_order())
    except CycleError as error:
        found.append(f"when: {' depends on '.join(map(str, error.args[1]))}")
    return found


def _sorter(space: Space) -> TopologicalSorter[str]:
    return TopologicalSorter({key: [other for other in p.when if other in space] for key, p in space.items()})


def _listed(wanted: Any) -> list[Any]:
    return wanted if isinstance(wanted, list) else [wanted]


def active(space: Space, sampled: Mapping[str, Any]) -> dict[str, Any]:
    """The sampled values whose conditions hold, in the order of the space."""
    holding: set[str] = set()
    for key in _sorter(space).static_order():
        if all(other in holding and sampled[other] in _listed(wanted) for other, wanted in space[key].when.items()):
            holding.add(key)
    return {key: sampled[key] for key in space if key in holding}


def samples(space: Space) -> list[dict[str, Any]]:
    """Sets of parameters in which each extreme value of each key occurs: what a check of the space must look at."""
    found: list[dict[str, Any]] = []
    for key, parameter in space.items():
        for value in parameter.extremes:
            sampled = {other: p.extremes[0] for other, p in space.items()}
            _satisfy(space, key, sampled)
            sampled[key] = value
            found.append(active(space, sampled))
    return list({as_text(one): one for one in found}.values())


def _satisfy(space: Space, key: str, sampled: dict[str, Any]) -> None:
    for other, wanted in space[key].when.items():
        sampled[other] = _listed(wanted)[0]
        _satisfy(space, other, sampled)


def grid_size(space: Space) -> int:
    """How many different trials a grid has, each condition counted."""
    keys = list(space)
    combinations = itertools.product(*(space[key].values or [None] for key in keys))
    return len({as_text(active(space, dict(zip(keys, one, strict=True)))) for one in combinations})


def as_text(parameters: Mapping[str, Any]) -> str:
    """Parameters as a text, which is the same for equal parameters."""
    return json.dumps(parameters, sort_keys=True, default=str)


def merged(base: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The base's plain values with dotted parameters set."""
    values: dict[str, Any] = _copied(base)
    for key, value in parameters.items():
        *parents, last = key.split(".")
        place = values
        for parent in parents:
            inner = place.get(parent)
            place[parent] = inner if isinstance(inner, dict) else {}
            place = place[parent]
        place[last] = value
    return values


def _copied(value: Any) -> Any:
    return {key: _copied(inner) for key, inner in value.items()} if isinstance(value, Mapping) else value

"""Search space of a sweep: ranges and choices for dotted keys of the base job, optionally under conditions."""

import itertools
import json
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from ropewalk.cluster.section import Section

if TYPE_CHECKING:
    from ray.tune.search.sample import Domain

Range = tuple[float, float]
SCALARS = (str, int, float, bool, type(None))


class Parameter(Section):
    """Values of one key: exactly one of the kinds, named as in Ray Tune."""

    uniform: Range | None = Field(default=None, description="[low, high], uniform")
    loguniform: Range | None = Field(default=None, description="[low, high], each order of magnitude equally likely")
    quniform: tuple[float, float, float] | None = Field(
        default=None, description="[low, high, step], uniform, rounded to the step"
    )
    qloguniform: tuple[float, float, float] | None = Field(default=None, description="[low, high, step] on a logarithmic scale")
    randint: tuple[int, int] | None = Field(default=None, description="[low, high): integers, excluding the upper end")
    choice: list[Any] | None = Field(default=None, min_length=1, description="draw one of these")
    grid: list[Any] | None = Field(default=None, min_length=1, description="try each of these, crossed with all other grids")
    when: dict[str, Any] = Field(default={}, description="only if other keys of the space have these values (one or a list)")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = [name for name in KINDS if getattr(self, name) is not None]
        if len(kinds) != 1:
            raise ValueError(f"set exactly one of {', '.join(KINDS)}")
        if self.values is None:
            low, high, *step = getattr(self, kinds[0])
            if not low < high:
                raise ValueError(f"{kinds[0]}: the range must be ascending; {low} is not below {high}")
            if "log" in kinds[0] and low <= 0:
                raise ValueError(f"{kinds[0]}: a logarithmic range must start above 0, not at {low}")
            if step and not 0 < step[0] <= high - low:
                raise ValueError(f"{kinds[0]}: the step must be between 0 and the width of the range, not {step[0]}")
        return self

    @property
    def kind(self) -> str:
        return next(name for name in KINDS if getattr(self, name) is not None)

    @property
    def values(self) -> list[Any] | None:
        """All values if there are finitely many; None for a range."""
        return self.choice if self.choice is not None else self.grid

    @property
    def extremes(self) -> list[Any]:
        """Values that represent all others in validation: the ends of a range, each value of a choice."""
        if self.values is not None:
            return self.values
        low, high, *_ = getattr(self, self.kind)
        return [low, high - 1 if self.kind == "randint" else high]

    def has(self, value: Any) -> bool:
        """Return True if a trial of this space can have a value."""
        if self.values is not None:
            return value in self.values
        low, high = self.extremes
        return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high

    def at(self, u: float) -> Any:
        """Return the value at a share `u` in [0, 1) of the range, or of the finitely many values."""
        if self.values is not None:
            return self.values[int(u * len(self.values))]
        low, high, *step = getattr(self, self.kind)
        if self.kind == "randint":
            return low + int(u * (high - low))
        value = low * (high / low) ** u if "log" in self.kind else low + u * (high - low)
        return min(high, round(value / step[0]) * step[0]) if step else value

    def domain(self) -> "Domain":
        """Return Ray Tune's domain, from which population-based training draws."""
        from ray import tune

        if self.values is not None:
            return tune.choice([encode(value) for value in self.values])
        domain: Domain = getattr(tune, self.kind)(*getattr(self, self.kind))
        return domain


KINDS = ("uniform", "loguniform", "quniform", "qloguniform", "randint", "choice", "grid")
Space = dict[str, Parameter]


def with_dotted_keys(space: Any) -> Any:
    """Return a space that has `optim: {lr: {...}}`, from `space.optim.lr...` on a command line, as `optim.lr: {...}`.

    Such an entry replaces one that a job file has.
    """
    if not isinstance(space, dict):
        return space
    dotted: dict[str, Any] = {}
    for key, value in space.items():
        nested = isinstance(value, dict) and value and all(isinstance(inner, dict) for inner in value.values())
        if nested and not set(value) & set(Parameter.model_fields):
            dotted.update({f"{key}.{name}": inner for name, inner in with_dotted_keys(value).items()})
        else:
            dotted[key] = value
    return dotted


def encode(value: Any) -> Any:
    """Encode a value for the search: scalars unchanged, lists and mappings as JSON."""
    return value if isinstance(value, SCALARS) else json.dumps(value, sort_keys=True)


def decode(parameter: Parameter, value: Any) -> Any:
    """Invert `encode`, and convert numpy numbers to Python's."""
    if parameter.values is not None:
        return next((option for option in parameter.values if encode(option) == value), value)
    return value.item() if hasattr(value, "item") else value


def condition_errors(space: Space) -> list[str]:
    """Return a message for each error in the `when` conditions of a space."""
    errors = []
    for key, parameter in space.items():
        for other, wanted in parameter.when.items():
            values = space[other].values if other in space else None
            if other not in space:
                errors.append(f"{key}.when: {other} is not a key of the space")
            elif values is None:
                errors.append(f"{key}.when: {other} is a range; conditions need a choice or a grid")
            elif unknown := [value for value in as_list(wanted) if value not in values]:
                errors.append(f"{key}.when: {other} is never {unknown[0]!r}; its values are {values}")
    try:
        list(_sorter(space).static_order())
    except CycleError as error:
        errors.append(f"when: {' depends on '.join(map(str, error.args[1]))}")
    return errors


def _sorter(space: Space) -> TopologicalSorter[str]:
    return TopologicalSorter({key: [other for other in p.when if other in space] for key, p in space.items()})


def in_order_of_conditions(space: Space) -> list[str]:
    """Return the keys of a space, each after those that its condition names."""
    return list(_sorter(space).static_order())


def as_list(wanted: Any) -> list[Any]:
    """Return the values that a condition accepts."""
    return wanted if isinstance(wanted, list) else [wanted]


def active_parameters(space: Space, sampled: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sampled values whose conditions hold, in the order of the space."""
    holding: set[str] = set()
    for key in _sorter(space).static_order():
        if all(other in holding and sampled[other] in as_list(wanted) for other, wanted in space[key].when.items()):
            holding.add(key)
    return {key: sampled[key] for key in space if key in holding}


def samples(space: Space) -> list[dict[str, Any]]:
    """Return sets of parameters that contain each extreme value of each key, for validation of the space."""
    sets: list[dict[str, Any]] = []
    for key, parameter in space.items():
        for value in parameter.extremes:
            sampled = {other: p.extremes[0] for other, p in space.items()}
            _satisfy(space, key, sampled)
            sampled[key] = value
            sets.append(active_parameters(space, sampled))
    return list({as_text(parameters): parameters for parameters in sets}.values())


def _satisfy(space: Space, key: str, sampled: dict[str, Any]) -> None:
    for other, wanted in space[key].when.items():
        sampled[other] = as_list(wanted)[0]
        _satisfy(space, other, sampled)


def grid_size(space: Space) -> int:
    """Return the number of different trials of a grid, considering conditions."""
    keys = list(space)
    combinations = itertools.product(*(space[key].values or [None] for key in keys))
    return len({as_text(active_parameters(space, dict(zip(keys, values, strict=True)))) for values in combinations})


def as_text(parameters: Mapping[str, Any]) -> str:
    """Return a text that is the same for equal parameters."""
    return json.dumps(parameters, sort_keys=True, default=str)


def merge_parameters(base: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the base configuration with dotted parameters set."""
    values: dict[str, Any] = _copy(base)
    for key, value in parameters.items():
        *parents, last = key.split(".")
        section = values
        for parent in parents:
            inner = section.get(parent)
            section[parent] = inner if isinstance(inner, dict) else {}
            section = section[parent]
        section[last] = value
    return values


def _copy(value: Any) -> Any:
    return {key: _copy(inner) for key, inner in value.items()} if isinstance(value, Mapping) else value

"""Read a job's configuration: a YAML file and dotted overrides become one frozen model; errors name the key."""

import difflib
import json
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from ropewalk.cluster.config import CountRange, JobConfig, Section
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.yaml_loader import DuplicateKeyError, Loader


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a configuration file as plain values. Raises ConfigError naming file and line."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError(f"{path}: no such configuration file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """Read YAML text as a mapping of plain values. Raises ConfigError."""
    try:
        value = yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        wrong = "" if isinstance(error, DuplicateKeyError) else "not YAML: "
        raise ConfigError(f"{source}{where}: {wrong}{getattr(error, 'problem', error)}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{source}: must be a mapping of keys to values, is a {type(value).__name__}")
    return value


def apply_override(values: dict[str, Any], override: str) -> None:
    """Apply an override such as `optim.lr=1e-3` to nested plain values, in place. Raises ConfigError."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        meant = f"; a job file is named by --config {override}" if override.endswith((".yaml", ".yml")) else ""
        raise ConfigError(f"{override!r} is not an override; write key=value, such as optim.lr=1e-3{meant}")
    if key.startswith("-"):
        raise ConfigError(f"{override!r}: no such option; overrides are written without dashes: {key.lstrip('-')}=...")
    value = _read_value(text)
    place = values
    *parents, last = key.split(".")
    for parent in parents:
        inner = place.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{key}: {parent} is set to {inner!r}, which has no keys below it")
        place = inner
    place[last] = value


def _read_value(text: str) -> Any:
    """Read the value of an override: YAML, or the text itself. JSON comes first, since YAML refuses its way to write an emoji."""
    if text.startswith(("[", "{", '"')):
        with suppress(ValueError):
            return json.loads(text)
    try:
        return yaml.load(text, Loader=Loader)
    except (yaml.YAMLError, ValueError):  # the latter: 2026-31-12 looks like a date
        return text


def load_config(kind: type[JobConfig], values: Mapping[str, Any], overrides: Sequence[str] = ()) -> JobConfig:
    """Make a job's frozen configuration of plain values and overrides. Raises ConfigError with one line an error."""
    merged: dict[str, Any] = _copy(values)
    for override in overrides:
        apply_override(merged, override)
    config = load_section(kind, merged)
    config.resources.check_ranks()
    return config


S = TypeVar("S", bound=Section)


def load_section(kind: type[S], values: Mapping[str, Any], source: str = "") -> S:
    """Make a frozen section of plain values. Raises ConfigError that names `source`, such as a cluster of the profile file."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(_explain(kind, problem) for problem in _worst(error))
        raise ConfigError(f"{source}: {problems}" if source else problems) from None


def _copy(value: Any) -> Any:
    return {k: _copy(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _worst(error: ValidationError) -> list[Any]:
    """Keep one problem a key: a union reports each of its members."""
    seen: dict[str, Any] = {}
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"] if not _is_union_tag(part))
        seen.setdefault(key, problem)
    # a key that is missing may be one that is misspelt
    return sorted(seen.values(), key=lambda problem: problem["type"] == "missing")[:3]


def _is_union_tag(part: object) -> bool:
    return isinstance(part, str) and (part[:1].isupper() or "[" in part or part in {"str", "int", "float", "bool"})


def _explain(kind: type[BaseModel], problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"] if not _is_union_tag(part))
    value = problem.get("input")
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key!r}; {_hint(key, [name for name, _ in walk_keys(kind)])}"
    if problem["type"] == "missing":
        return f"{key}: required, and not set"
    message = problem["msg"].removeprefix("Value error, ")
    shown = f", is {value!r}" if not isinstance(value, (dict, list, BaseModel)) else ""
    where = f"{key}: " if key else ""
    return f"{where}{message[:1].lower()}{message[1:]}{shown}"


def _hint(key: str, known: Sequence[str]) -> str:
    """What a person may have meant by an unknown key: one that ends so, one that is spelt almost so; else what there is."""
    names = sorted({*known, *(name.rpartition(".")[0] for name in known)} - {""})
    section, _, last = key.rpartition(".")
    inside = [name for name in names if section and name.rpartition(".")[0] == section]
    near = [name for name in names if name.rpartition(".")[2] == last]
    if not near and inside:
        words = difflib.get_close_matches(last, [name.rpartition(".")[2] for name in inside], n=1)
        near = [f"{section}.{word}" for word in words]
    elif not near:  # its last word may be misspelt, or stand in another section
        ends = difflib.get_close_matches(last, [name.rpartition(".")[2] for name in names], n=1, cutoff=0.8)
        near = difflib.get_close_matches(key, names, n=1, cutoff=0.8)
        near = near or [name for name in names if name.rpartition(".")[2] in ends] or difflib.get_close_matches(key, names, n=1)
    if near:
        return f"did you mean {' or '.join(map(repr, sorted(near, key=len)[:3]))}?"
    return f"keys of {section}: {', '.join(inside)}" if inside else f"known here: {', '.join(known[:12])}"


def walk_keys(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every dotted key of a configuration with its field, depth first, also those of nested sections."""
    for name, info in kind.model_fields.items():
        sections = [
            t
            for t in types_of(info.annotation)
            if isinstance(t, type) and issubclass(t, Section) and not issubclass(t, CountRange)
        ]
        if not sections or len(sections) != len([t for t in types_of(info.annotation) if t is not type(None)]):
            yield f"{prefix}{name}", info
        for section in sections:
            yield from walk_keys(section, f"{prefix}{name}.")


def types_of(annotation: Any) -> list[Any]:
    """Return the members of a union, without Annotated, or the one type that the annotation is."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return types_of(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [t for argument in get_args(annotation) for t in types_of(argument)]
    return [annotation]

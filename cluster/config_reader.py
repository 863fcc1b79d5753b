"""Job configurations from a YAML file and dotted overrides, with errors that name the key."""

import difflib
import json
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from ropewalk.cluster.config import CountRange, JobConfig
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.section import Section
from ropewalk.cluster.yaml_loader import DuplicateKeyError, Loader

MOST_PROBLEMS = 3  # in one error
# pydantic's words and ours, replaced in this order
PLAIN_WORDS = {
    "Input should be ": "must be ",
    ", unable to parse string as a number": "",
    ", unable to parse string as an integer": "",
    ", unable to interpret input": "",
    ", got a number with a fractional part": "",
    "a valid number": "a number",
    "a valid integer": "an integer",
    "a valid boolean": "true or false",
    "a valid string": "a text",
    "a valid dictionary": "a mapping of keys to values",
    "a valid list": "a list",
    "a valid tuple": "a list",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "above",
    "less than": "below",
}


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a configuration file as plain values. Raises ConfigError with file and line."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError(f"{path}: no such configuration file{hint}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a directory; name a YAML file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not a text file; name a YAML file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; check the path and its permissions") from None
    return parse_yaml(text, str(path))


def read_job_file(path: Path, job: str) -> dict[str, Any]:
    """Read the keys of a job from its file, without `run`, which names the job. Raises ConfigError if it names another job."""
    values = read_yaml(path)
    named = values.pop("run", job)
    if named != job:
        raise ConfigError(
            f"{path}: `run: {named}` makes it a job file of {named}, not of {job}; `ropewalk run -c {path}` runs it"
        )
    return values


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """Parse YAML text into a mapping of plain values. Raises ConfigError."""
    try:
        value = yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        prefix = "" if isinstance(error, DuplicateKeyError) else "not YAML: "
        raise ConfigError(f"{source}{line}: {prefix}{getattr(error, 'problem', error)}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        shown = "a list" if isinstance(value, list) else repr(value)
        raise ConfigError(f"{source}: must be a mapping of keys to values, not {shown}")
    return value


def apply_override(values: dict[str, Any], override: str) -> None:
    """Apply an override such as `optim.lr=1e-3` to nested plain values, in place. Raises ConfigError."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        hint = f"; to use a job file, write --config {override}" if override.endswith((".yaml", ".yml")) else ""
        raise ConfigError(f"{override!r} is not an override; write key=value, such as optim.lr=1e-3{hint}")
    if key.startswith("-"):
        raise ConfigError(f"{override!r}: no such option; overrides are written without dashes: {key.lstrip('-')}=...")
    value = _read_value(text)
    section = values
    *parents, last = key.split(".")
    for parent in parents:
        inner = section.setdefault(parent, {})
        if "job" in section and isinstance(inner, str) and inner.endswith((".yaml", ".yml")):  # such as base of a sweep
            inner = section[parent] = read_job_file(Path(inner).expanduser(), str(section["job"]))
        if not isinstance(inner, dict):
            raise ConfigError(f"{key}: {parent} is set to {inner!r}, which has no keys below it")
        section = inner
    section[last] = value


def _read_value(text: str) -> Any:
    """Parse an override's value as YAML, else as text. JSON first: YAML rejects JSON's escapes beyond U+FFFF, such as emoji."""
    if text.startswith(("[", "{", '"')):
        with suppress(ValueError):
            return json.loads(text)
    try:
        return yaml.load(text, Loader=Loader)
    except (yaml.YAMLError, ValueError):  # ValueError: an invalid date such as 2026-31-12
        return text


def problems_of(kind: type[JobConfig], values: Mapping[str, Any], overrides: Sequence[str] = ()) -> list[str]:
    """Return a message for each key with an invalid value. Raises ConfigError for an override that cannot be applied."""
    merged: dict[str, Any] = _copy(values)
    for override in overrides:
        apply_override(merged, override)
    try:
        kind.model_validate(merged)
    except ValidationError as error:
        return [_explain(kind, problem) for problem in _by_key(error)]
    return []


def load_config(kind: type[JobConfig], values: Mapping[str, Any], overrides: Sequence[str] = ()) -> JobConfig:
    """Validate plain values and overrides as a job's configuration. Raises ConfigError that names the invalid keys."""
    merged: dict[str, Any] = _copy(values)
    for override in overrides:
        apply_override(merged, override)
    config = load_section(kind, merged)
    config.resources.check_ranks()
    if config.resources.spare_nodes and "resources.spare_nodes" in config.hidden_keys:
        raise ConfigError("resources.spare_nodes: only jobs that train can use a spare node; remove it")
    return config


def changed_keys(before: JobConfig, after: JobConfig) -> dict[str, Any]:
    """Return the dotted keys whose values differ between two configurations of a job, with the plain values after."""

    def differing(old: Any, new: Any, key: str) -> Iterator[tuple[str, Any]]:
        if isinstance(old, dict) and isinstance(new, dict):
            for name in new:
                yield from differing(old.get(name), new[name], f"{key}.{name}" if key else name)
        elif old != new:
            yield key, new

    return dict(differing(before.model_dump(mode="json"), after.model_dump(mode="json"), ""))


S = TypeVar("S", bound=Section)


def load_section(kind: type[S], values: Mapping[str, Any], source: str = "") -> S:
    """Validate plain values as a section. Raises ConfigError, prefixed with `source`, such as a cluster of the profile file."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(_explain(kind, problem) for problem in _by_key(error)[:MOST_PROBLEMS])
        raise ConfigError(f"{source}: {problems}" if source else problems) from None


def plain_message(message: str) -> str:
    """Return a message of pydantic's in plain words."""
    for theirs, plain in PLAIN_WORDS.items():
        message = message.replace(theirs, plain)
    return message


def _copy(value: Any) -> Any:
    return {k: _copy(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _by_key(error: ValidationError) -> list[Any]:
    """Return one problem per key, the most useful first: pydantic reports one for each member of a union."""
    by_key: dict[str, Any] = {}
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"] if not _is_union_tag(part))
        by_key.setdefault(key, problem)
    # missing keys last: another problem may be a misspelling of one of them
    return sorted(by_key.values(), key=lambda problem: problem["type"] == "missing")


def _is_union_tag(part: object) -> bool:
    return isinstance(part, str) and (part[:1].isupper() or "[" in part or part in {"str", "int", "float", "bool"})


def _explain(kind: type[BaseModel], problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"] if not _is_union_tag(part))
    value = problem.get("input")
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key!r}; {_hint(key, _keys_beside(kind, problem['loc']) or [name for name, _ in walk_keys(kind)])}"
    if problem["type"] == "missing":
        return f"{key}: required, and not set"
    if problem["type"] == "model_type" and (section := _section_at(kind, problem["loc"])) is not None:
        return f"{key}: is a section of keys, and not {value!r}; {_key_for(section, key, value)}"
    is_ours = problem["type"] == "value_error"
    message = problem["msg"].removeprefix("Value error, ") if is_ours else plain_message(problem["msg"])
    shown = ""
    if not isinstance(value, (dict, list, BaseModel)):
        shown = f" (it is {value!r})" if is_ours else f", not {value!r}"
    prefix = f"{key}: " if key else ""
    return f"{prefix}{message[:1].lower()}{message[1:]}{shown}"


def _section_at(kind: type[BaseModel], loc: Sequence[str | int]) -> type[Section] | None:
    """Return the section of a problem's location, also below lists and mappings; None if the location is no section."""
    types: list[Any] = [kind]
    for part in (part for part in loc if not _is_union_tag(part)):
        inner = [fields[part].annotation for t in types if part in (fields := getattr(t, "model_fields", {}))]
        types = [t for annotation in inner or [a for t in types for a in get_args(t)] for t in types_of(annotation)]
    return next((t for t in types if isinstance(t, type) and issubclass(t, Section)), None)


def _keys_beside(kind: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """Return the keys that an entry of a list or mapping has; empty for the key of a plain section."""
    above = [str(part) for part in loc[:-1]]
    if not above or any(f"{name}.".startswith(f"{'.'.join(above)}.") for name, _ in walk_keys(kind)):
        return []
    section = _section_at(kind, loc[:-1])
    return [".".join([*above, name]) for name in section.model_fields] if section is not None else []


def _key_for(section: type[Section], key: str, value: Any) -> str:
    """Return the override that a user meant who set a section to a plain value: the first of its keys that takes it."""
    if value is True:
        return f"write {key}={{}} for its defaults"
    for name in section.model_fields:
        try:
            section.model_validate({name: value})
        except ValidationError as error:
            if any(problem["loc"][:1] == (name,) for problem in error.errors(include_url=False)):
                continue
        return f"write {key}.{name}={value}"
    return f"its keys are {', '.join(f'{key}.{name}' for name in section.model_fields)}"


def _hint(key: str, valid_keys: Sequence[str]) -> str:
    """Suggest similar keys for an unknown one, else all of its section, or the first parts of all keys."""
    if near := similar_keys(key, valid_keys):
        return f"did you mean {' or '.join(map(repr, near))}?"
    section = key.rpartition(".")[0]
    inside = [name for name in _with_sections(valid_keys) if section and name.rpartition(".")[0] == section]
    if inside:
        return f"keys of {section}: {', '.join(inside)}"
    first_parts = dict.fromkeys(name.partition(".")[0] for name in valid_keys)
    return f"valid keys: {', '.join(sorted(first_parts, key=lambda name: name in JobConfig.model_fields))}"


def _with_sections(keys: Sequence[str]) -> list[str]:
    return sorted({*keys, *(name.rpartition(".")[0] for name in keys)} - {""})


def similar_keys(key: str, valid_keys: Sequence[str]) -> list[str]:
    """Return up to three valid keys with the same last part or a similar spelling as an unknown one."""
    names = _with_sections(valid_keys)
    section, _, last = key.rpartition(".")
    inside = [name for name in names if section and name.rpartition(".")[0] == section]
    near = [name for name in names if name.rpartition(".")[2] == last]
    if not near and inside:
        similar = difflib.get_close_matches(last, [name.rpartition(".")[2] for name in inside], n=1)
        near = [f"{section}.{name}" for name in similar]
    elif not near:  # its last part may be misspelt, or belong to another section
        ends = difflib.get_close_matches(last, [name.rpartition(".")[2] for name in names], n=1, cutoff=0.8)
        near = difflib.get_close_matches(key, names, n=1, cutoff=0.8)
        near = near or [name for name in names if name.rpartition(".")[2] in ends] or difflib.get_close_matches(key, names, n=1)
    return sorted(near, key=len)[:3]


def walk_keys(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every dotted key of a configuration, including nested sections, with its field; depth first."""
    for name, info in kind.model_fields.items():
        if not is_section(info.annotation):
            yield f"{prefix}{name}", info
        for section in sections_of(info.annotation):
            yield from walk_keys(section, f"{prefix}{name}.")


def is_section(annotation: Any) -> bool:
    """Return True if a key's value can only be a section, or null, so that the key has no value of its own."""
    sections = sections_of(annotation)
    return bool(sections) and len(sections) == len([t for t in types_of(annotation) if t is not type(None)])


def sections_of(annotation: Any) -> list[type[Section]]:
    """Return the sections among the types of a key."""
    return [t for t in types_of(annotation) if isinstance(t, type) and issubclass(t, Section) and not issubclass(t, CountRange)]


def types_of(annotation: Any) -> list[Any]:
    """Return the member types of a union, or the annotation itself as a list; Annotated is unwrapped."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return types_of(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [t for argument in get_args(annotation) for t in types_of(argument)]
    return [annotation]

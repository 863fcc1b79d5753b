"""All keys of a job with type, default and description. Shell completion uses it, so rich is not imported."""

import json
from dataclasses import dataclass
from operator import methodcaller
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from ropewalk.cluster.config import CountRange, JobConfig, Section
from ropewalk.cluster.config_reader import types_of, walk_keys


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of a job's configuration, as shown in its help."""

    name: str  # dotted
    meaning: str
    type: str
    default: str | None  # as written in a job file; None: the key is required
    values: tuple[str, ...]  # allowed values, if the key is an enumeration or a flag

    @property
    def section(self) -> str:
        """The first part of a dotted name; empty for a top-level key."""
        return self.name.rpartition(".")[0].partition(".")[0]


def keys_of(kind: type[JobConfig]) -> list[Key]:
    """Return every key of a job: required keys first, then the job's own, then common keys; sections stay together."""
    keys = [_key(kind, name, info) for name, info in walk_keys(kind)]
    return sorted(keys, key=lambda key: _rank(kind, key.name.partition(".")[0], key.default is None and not key.section))


def _rank(kind: type[JobConfig], top: str, required: bool) -> tuple[bool, int]:
    fields = list(kind.model_fields)
    of_every_job = top in JobConfig.model_fields
    return not (required or kind.model_fields[top].is_required()), of_every_job * len(fields) + fields.index(top)


def _key(kind: type[JobConfig], name: str, info: FieldInfo) -> Key:
    types = types_of(info.annotation)
    values = [str(value) for kind in types if get_origin(kind) is Literal for value in get_args(kind)]
    return Key(
        name=name,
        meaning=info.description or "",
        type=_type(info.annotation),
        default=None if info.is_required() else _yaml(_default(kind, name, info)),
        values=(*values, "true", "false") if bool in types else tuple(values),
    )


def _default(kind: type[JobConfig], name: str, info: FieldInfo) -> Any:
    """Return a key's default; the default of its section takes precedence over that of the section's class."""
    section, _, last = name.partition(".")
    whole = kind.model_fields[section].default if last and "." not in last else None
    return getattr(whole, last) if isinstance(whole, Section) else info.get_default(call_default_factory=True, validated_data={})


def _yaml(value: Any) -> str:
    if isinstance(value, CountRange):
        return str(value)
    plain = methodcaller("model_dump", mode="json", exclude_none=True)  # of a section, by itself or in a list
    return "unset" if value is None else value if isinstance(value, str) else json.dumps(value, default=plain)


def _type(annotation: Any) -> str:
    """Describe a type to users: `int`, `cosine|wsd`, `list of str`, `{path, weight}`."""
    names = []
    for kind in types_of(annotation):
        origin, arguments = get_origin(kind), get_args(kind)
        if origin is Literal:
            names.append("|".join(str(word) for word in arguments))
        elif origin in (list, tuple):
            names.append(f"list of {_type(arguments[0])}")
        elif origin is dict or kind is dict:
            names.append("mapping")
        elif isinstance(kind, type) and issubclass(kind, CountRange):
            names.append("int or A..B")
        elif isinstance(kind, type) and issubclass(kind, Section):
            names.append(f"{{{', '.join(kind.model_fields)}}}")
        elif kind is not type(None):  # null unsets a key
            names.append(getattr(kind, "__name__", str(kind)))
    return " or ".join(dict.fromkeys(names))

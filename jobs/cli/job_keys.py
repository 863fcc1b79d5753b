"""All keys of a job with type, default and description. Shell completion uses it, so rich is not imported."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import methodcaller
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from ropewalk.cluster.config import CountRange, JobConfig
from ropewalk.cluster.config_reader import is_section, sections_of, types_of
from ropewalk.cluster.section import Section

SECTION = "section"  # type of a key that stands for the keys below it


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of a job's configuration, as shown in its help."""

    name: str  # dotted
    meaning: str
    type: str
    default: str | None  # as written in a job file, or in words if it depends on other keys; None: the key is required
    values: tuple[str, ...]  # allowed values, if the key is an enumeration or a flag
    condition: str = ""  # when the default holds: with a section that is unset by default, or in entries of a list
    in_words: bool = False  # the default depends on other keys, so that it is no value
    entry: bool = False  # below a list or mapping, whose entries have this key

    @property
    def section(self) -> str:
        """The first part of a dotted name; empty for a top-level key."""
        return self.name.rpartition(".")[0].partition(".")[0]

    @property
    def facts(self) -> str:
        """Type and default, such as `(float, default 0.1)`; for a required key when it is required."""
        if self.default == "unset":
            return f"({self.type}, unset)"
        if self.type == SECTION:
            return f"({self.type}{', required' if self.default is None else ''})"
        return f"({self.type}, {'required' if self.default is None else f'default {self.default}'}{self.condition})"


def keys_of(kind: type[JobConfig]) -> list[Key]:
    """Return the keys of a job that do something: required keys first, then the job's own, then common keys."""
    keys = [key for key in all_keys(kind) if not key.entry and key.type != SECTION]
    return sorted(keys, key=lambda key: _rank(kind, key.name.partition(".")[0], key.default is None and not key.section))


def usual_keys(kind: type[JobConfig]) -> list[Key]:
    """Return the keys that a job's help prints first."""
    by_name = {key.name: key for key in all_keys(kind)}
    return [by_name[name] for name in kind.usual_keys]


def all_keys(kind: type[JobConfig]) -> Iterator[Key]:
    """Yield the keys of a job that do something, with sections, and keys of entries of lists; depth first."""
    return _keys(kind, None, Key(name="", meaning="", type="", default="", values=()), frozenset())


def _rank(kind: type[JobConfig], top: str, required: bool) -> tuple[bool, int]:
    fields = list(kind.model_fields)
    of_every_job = top in JobConfig.model_fields
    return not (required or kind.model_fields[top].is_required()), of_every_job * len(fields) + fields.index(top)


def _keys(kind: type[Section], values: Section | None, parent: Key, hidden: frozenset[str]) -> Iterator[Key]:
    """Yield the keys of a section with the defaults that `values` has, or else its class."""
    hidden |= {f"{parent.name}{name}" for name in kind.hidden_keys}
    for name, info in kind.model_fields.items():
        dotted = f"{parent.name}{name}"
        if dotted in hidden:
            continue
        default = getattr(values, name) if values is not None else _class_default(info)
        key = replace(_key(dotted, info, default), condition=parent.condition, entry=parent.entry)
        yield key if not is_section(info.annotation) else replace(key, type=SECTION)
        condition = parent.condition if isinstance(default, Section) or info.is_required() else f" with {dotted}"
        for section in sections_of(info.annotation):
            inner = default if isinstance(default, section) else None
            yield from _keys(section, inner, replace(parent, name=f"{dotted}.", condition=condition), hidden)
        for section in _entries(info.annotation):
            below = replace(parent, name=f"{dotted}.", condition=f" in each entry of {dotted}", entry=True)
            yield from _keys(section, None, below, hidden)


def _class_default(info: FieldInfo) -> Any:
    return None if info.is_required() else info.get_default(call_default_factory=True, validated_data={})


def _entries(annotation: Any) -> list[type[Section]]:
    """Return the sections of which a key has a list or a mapping."""
    containers = [kind for kind in types_of(annotation) if get_origin(kind) in (list, tuple, dict)]
    return [section for kind in containers for argument in get_args(kind) for section in sections_of(argument)]


def _key(name: str, info: FieldInfo, default: Any) -> Key:
    types = types_of(info.annotation)
    values = [str(value) for kind in types if get_origin(kind) is Literal for value in get_args(kind)]
    extra = info.json_schema_extra
    text = extra.get("default_text") if isinstance(extra, dict) else None
    return Key(
        name=name,
        meaning=info.description or "",
        type=_type(info.annotation),
        default=None if info.is_required() else str(text or _yaml(default)),
        in_words=text is not None,
        values=(*values, "true", "false") if bool in types else tuple(values),
    )


def _yaml(value: Any) -> str:
    if isinstance(value, CountRange):
        return str(value)
    plain = methodcaller("model_dump", mode="json", exclude_none=True)  # of a section, by itself or in a list
    return "unset" if value is None else value if isinstance(value, str) else json.dumps(value, default=plain)


def _type(annotation: Any) -> str:
    """Describe a type to users: `int`, `cosine | wsd`, `list of str`, `{path, weight}`."""
    names = []
    for kind in types_of(annotation):
        origin, arguments = get_origin(kind), get_args(kind)
        if origin is Literal:
            names.append(" | ".join(str(word) for word in arguments))
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

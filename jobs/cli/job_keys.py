"""The keys of a job, each with its type, its default and what it decides. Shells ask while one types: no rich is imported."""

import json
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ropewalk.cluster.config import CountRange, JobConfig, Section
from ropewalk.cluster.config_reader import types_of, walk_keys


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of a job, as its help shows it."""

    name: str  # dotted
    meaning: str
    type: str
    default: str | None  # as it would stand in a job file; None: the key must be set
    values: tuple[str, ...]  # what it may be set to, where these are few

    @property
    def section(self) -> str:
        """The first word of a dotted name; `TOP` for a key that stands alone."""
        return self.name.rpartition(".")[0].partition(".")[0]


def keys_of(kind: type[JobConfig]) -> list[Key]:
    """Every key of a job: required ones first, then the job's own, then those of every job; a section's stay together."""
    keys = [_key(kind, name, info) for name, info in walk_keys(kind)]
    return sorted(keys, key=lambda key: _rank(kind, key.name.partition(".")[0], key.default is None and not key.section))


def _rank(kind: type[JobConfig], top: str, required: bool) -> tuple[bool, int]:
    fields = list(kind.model_fields)
    of_every_job = top in JobConfig.model_fields
    return not (required or kind.model_fields[top].is_required()), of_every_job * len(fields) + fields.index(top)


def _key(kind: type[JobConfig], name: str, info: FieldInfo) -> Key:
    kinds = types_of(info.annotation)
    values = [str(word) for one in kinds if get_origin(one) is Literal for word in get_args(one)]
    return Key(
        name=name,
        meaning=info.description or "",
        type=_type(info.annotation),
        default=None if info.is_required() else _yaml(_default(kind, name, info)),
        values=(*values, "true", "false") if bool in kinds else tuple(values),
    )


def _default(kind: type[JobConfig], name: str, info: FieldInfo) -> Any:
    """A key's default: its section's, which may differ from what the section's class says."""
    section, _, last = name.partition(".")
    whole = kind.model_fields[section].default if last and "." not in last else None
    return getattr(whole, last) if isinstance(whole, Section) else info.get_default(call_default_factory=True, validated_data={})


def _yaml(value: Any) -> str:
    if isinstance(value, BaseModel):
        value = str(value) if isinstance(value, CountRange) else value.model_dump(mode="json", exclude_none=True)
    return "unset" if value is None else value if isinstance(value, str) else json.dumps(value, default=_plain)


def _plain(section: BaseModel) -> dict[str, Any]:
    """A section within a list, without what is unset in it."""
    return section.model_dump(mode="json", exclude_none=True)


def _type(annotation: Any) -> str:
    """A type in a user's words: `int`, `cosine|wsd`, `list of str`, `{path, weight}`."""
    words = []
    for kind in types_of(annotation):
        origin, arguments = get_origin(kind), get_args(kind)
        if origin is Literal:
            words.append("|".join(str(word) for word in arguments))
        elif origin in (list, tuple):
            words.append(f"list of {_type(arguments[0])}")
        elif origin is dict or kind is dict:
            words.append("mapping")
        elif isinstance(kind, type) and issubclass(kind, CountRange):
            words.append("int or A..B")
        elif isinstance(kind, type) and issubclass(kind, Section):
            words.append(f"{{{', '.join(kind.model_fields)}}}")
        elif kind is not type(None):  # null is how a key is unset
            words.append(getattr(kind, "__name__", str(kind)))
    return " or ".join(dict.fromkeys(words))

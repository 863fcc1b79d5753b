"""`ropewalk run JOB --help`: every key of a job by section, each with its type, its default and what it decides."""

import json
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from cluster.config import CountRange, JobConfig, Section
from cluster.config_reader import types_of, walk_keys
from jobs.registry import JOBS, config_of, find_job

WIDEST = 120  # columns: longer lines are hard to read
TOP = ""  # the section of keys that stand alone


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


def print_job_help(command: str, job: str) -> None:
    """Print a job's usage and its keys. Raises ConfigError for an unknown job."""
    spec = find_job(job)
    out = _console()
    out.print(f"ropewalk {command} {spec.name} [-c FILE.yaml] [key=value ...] [--on CLUSTER]\n", markup=False)
    out.print(f"{spec.summary} Keys are set in FILE.yaml, or as key=value.", markup=False)
    out.print(_page(config_of(spec)))


def print_jobs() -> None:
    """Print the jobs there are, a line each."""
    rows = _grid(max(map(len, JOBS)))
    for spec in JOBS.values():
        rows.add_row(Text(spec.name, style="bold"), spec.summary)
    _console().print(
        Group(Text("Jobs", style="bold underline"), rows, Text("\n`ropewalk run JOB --help` lists the keys of one."))
    )


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


def _page(kind: type[JobConfig]) -> Group:
    keys = keys_of(kind)
    width = max(len(key.name) for key in keys)
    sections = list(dict.fromkeys(key.section for key in keys))
    sections.sort(key=lambda name: name != TOP)  # the others stay as they are
    lines: list[Text | Table] = []
    for section in sections:
        rows = _grid(width)
        for key in keys:
            if key.section == section:
                rows.add_row(Text(key.name, style="bold"), Text.assemble(f"{key.meaning} ", (_facts(kind, key), "dim")))
        lines += [Text(), _heading(kind, section), rows]
    return Group(*lines)


def _facts(kind: type[JobConfig], key: Key) -> str:
    """`(float, default 0.1)`; of a key without a default, when it must be set."""
    if key.default is not None:
        return f"({key.type}, {key.default if key.default == 'unset' else f'default {key.default}'})"
    optional = key.section and not kind.model_fields[key.section].is_required()
    return f"({key.type}, required with {key.section})" if optional else f"({key.type}, required)"


def _heading(kind: type[JobConfig], section: str) -> Text:
    if section == TOP:
        return Text("Top-level keys", style="bold underline")
    info = kind.model_fields[section]
    more = ", required" if info.is_required() else ", unset by default" if info.default is None else ""
    return Text.assemble((section, "bold underline"), f": {info.description or ''}{more}")


def _grid(width: int) -> Table:
    rows = Table.grid(padding=(0, 2))
    rows.add_column(no_wrap=True, min_width=width + 2)
    rows.add_column(overflow="fold")
    return rows


def _console() -> Console:
    made = Console(highlight=False)
    return made if made.width <= WIDEST else Console(highlight=False, width=WIDEST)

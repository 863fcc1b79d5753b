"""Filters by name: those that come with the program, and those that others add through entry points. It is light."""

import difflib
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Annotated, Any

from pydantic import BeforeValidator

from ropewalk.cluster.config_reader import load_section
from ropewalk.cluster.errors import ConfigError
from ropewalk.datapipe.filters.filter import Filter

GROUP = "ropewalk.filters"  # entry points that are a subclass of Filter
BUILT_IN = {
    "c4": "ropewalk.datapipe.filters.rules.published:C4",
    "decontaminate": "ropewalk.datapipe.filters.decontamination.filter:Decontaminate",
    "fineweb": "ropewalk.datapipe.filters.rules.published:FineWeb",
    "gopher_quality": "ropewalk.datapipe.filters.rules.published:GopherQuality",
    "gopher_repetition": "ropewalk.datapipe.filters.rules.published:GopherRepetition",
    "language": "ropewalk.datapipe.filters.language.filter:Language",
    "min_words": "ropewalk.datapipe.filters.min_words:MinWords",
    "pii": "ropewalk.datapipe.filters.privacy.filter:PersonalData",
    "scores": "ropewalk.datapipe.filters.scores:Scores",
}


def find_filter(name: str) -> type[Filter]:
    """The filter that a user names: a built-in one, or one of the entry-point group. Raises ConfigError with the nearest name."""
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        built_in: type[Filter] = getattr(import_module(module), attribute)
        return built_in
    points = {point.name: point for point in entry_points(group=GROUP)}
    if name in points:
        added: type[Filter] = points[name].load()
        return added
    known = sorted({*BUILT_IN, *points})
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"filters: unknown filter {name!r}{hint}; known: {', '.join(known)}")


def parse_filters(value: Any) -> tuple[dict[str, dict[str, Any]], ...]:
    """What a job file says of filters as ({name: {option: value}}, ...), in order, with every default filled in.

    A user writes a list of names and {name: {option: value}}, or one mapping of names to options. Raises ConfigError.
    """
    entries = [value] if isinstance(value, (str, Mapping)) else value or ()
    if not isinstance(entries, Sequence):
        raise ConfigError(f"filters: must be a list of names or of {{name: {{option: value}}}}, is {value!r}")
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        named = {entry: {}} if isinstance(entry, str) else entry
        if not isinstance(named, Mapping):
            raise ConfigError(f"filters: {entry!r} is neither a name nor {{name: {{option: value}}}}")
        for name, options in named.items():
            if name in found:
                raise ConfigError(f"filters: {name!r} is given twice; join the two")
            found[name] = make_filter(name, options or {}).model_dump(mode="json")
    return tuple({name: options} for name, options in found.items())


def make_filter(name: str, options: Mapping[str, Any]) -> Filter:
    """A filter with these options. Raises ConfigError."""
    if not isinstance(options, Mapping):
        raise ConfigError(f"filters: {name}: options are written {{option: value}}, are {options!r}")
    return load_section(find_filter(name), options, f"filters: {name}")


# The key `filters` of a data set's configuration.
Filters = Annotated[tuple[dict[str, dict[str, Any]], ...], BeforeValidator(parse_filters)]

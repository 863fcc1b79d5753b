"""Filters by name: built-in ones, those of installed packages (entry points), the user's own. Imports nothing heavy."""

import difflib
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Annotated, Any

from pydantic import BeforeValidator

from ropewalk.cluster.config_reader import load_section
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.project import user_object, wrong_kind
from ropewalk.datapipe.filters.filter import Filter

GROUP = "ropewalk.filters"  # entry points; each names a subclass of Filter
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
    """Return the filter of a name: built in, installed, or MODULE:NAME in the user's project.

    Raises ConfigError, with the closest name, if there is none.
    """
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        built_in: type[Filter] = getattr(import_module(module), attribute)
        return built_in
    if ":" in name:
        candidate = user_object("filters", name)
        if not (isinstance(candidate, type) and issubclass(candidate, Filter)):
            raise wrong_kind("filters", name, candidate, "a subclass of ropewalk.datapipe.filters.filter.Filter")
        return candidate
    points = {point.name: point for point in entry_points(group=GROUP)}
    if name in points:
        installed: type[Filter] = points[name].load()
        return installed
    names = sorted({*BUILT_IN, *points})
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"filters: unknown filter {name!r}{hint}; available: {', '.join(names)}, or MODULE:NAME of your own")


def need_own_code(filters: "Filters") -> bool:
    """Return True if filters, or the scorers of the filter `scores`, are the user's own."""
    return any(":" in name or name == "scores" for entry in filters for name in entry)


def parse_filters(value: Any) -> tuple[dict[str, dict[str, Any]], ...]:
    """Normalize the key `filters` to ({name: {option: value}}, ...), in order, with all defaults filled in.

    A job file has a list of names and {name: {option: value}}, or one mapping of names to options. Raises ConfigError.
    """
    entries = [value] if isinstance(value, (str, Mapping)) else value or ()
    if not isinstance(entries, Sequence):
        raise ConfigError(f"filters: must be a list of names or {{name: {{option: value}}}}, not {value!r}")
    filters: dict[str, dict[str, Any]] = {}
    for entry in entries:
        named = {entry: {}} if isinstance(entry, str) else entry
        if not isinstance(named, Mapping):
            raise ConfigError(f"filters: {entry!r} is neither a name nor {{name: {{option: value}}}}")
        for name, options in named.items():
            if name in filters:
                raise ConfigError(f"filters: {name!r} appears twice; merge the two entries")
            filters[name] = make_filter(name, options or {}).model_dump(mode="json")
    return tuple({name: options} for name, options in filters.items())


def make_filter(name: str, options: Mapping[str, Any]) -> Filter:
    """Create a filter with these options. Raises ConfigError."""
    if not isinstance(options, Mapping):
        raise ConfigError(f"filters: {name}: options must be {{option: value}}, not {options!r}")
    return load_section(find_filter(name), options, f"filters: {name}")


# type of the key `filters` of a data set's configuration
Filters = Annotated[tuple[dict[str, dict[str, Any]], ...], BeforeValidator(parse_filters)]

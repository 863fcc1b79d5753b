"""Paths in a user's configuration, and what each of them names: a model, a tokenizer, data, a file."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator

from ropewalk.cluster.section import Section

_relative: ContextVar[set[str] | None] = ContextVar("relative paths", default=None)


@contextmanager
def relative_paths(paths: set[str]) -> Iterator[None]:
    """Collect the paths that configurations made in the block give relative to the current directory, as absolute ones."""
    token = _relative.set(paths)
    try:
        yield
    finally:
        _relative.reset(token)


def absolute(path: str) -> str:
    """Make a local path absolute; return a URL (s3://...) unchanged."""
    if re.match(r"^[a-z0-9+]+:", path):
        return path
    result = str(Path(path).expanduser().absolute())
    if (paths := _relative.get()) is not None and not path.startswith(("/", "~")):
        paths.add(result)
    return result


# Maps a path of a cluster to this machine's path of the same file; None: not visible here, so it cannot be checked.
PathView = Callable[[str], Path | None]

# A path or fsspec URL in a user's configuration; made absolute at submission, since ranks have another current directory.
DataPath = Annotated[str, AfterValidator(absolute)]


@dataclass(frozen=True)
class Fetched:
    """Mark of a key whose value may be a name on the Hugging Face hub or a URL: it is fetched at submission."""

    need: Literal["model", "tokenizer", "data", "tokens", "file"]


ModelPath = Annotated[str, AfterValidator(absolute), Fetched("model")]  # with weights
TokenizerPath = Annotated[str, AfterValidator(absolute), Fetched("tokenizer")]
InputPath = Annotated[str, AfterValidator(absolute), Fetched("data")]  # files, a directory or a glob of documents
TokensPath = Annotated[str, AfterValidator(absolute), Fetched("tokens")]  # a data set made by preprocess
DataPaths = Annotated[tuple[InputPath, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]
FilePath = Annotated[str, AfterValidator(absolute), Fetched("file")]  # one file


Resolve = Callable[[str, str, str], str]  # from dotted key, value and need of a marked key to its new value


def map_inputs(value: Any, resolve: Resolve, key: str = "", need: str = "") -> Any:
    """Return a section, or value of a key, whose marked texts are replaced; the same object if nothing changes."""
    if isinstance(value, Section):
        parts = {name: getattr(value, name) for name in type(value).model_fields}
        needs = _needs(type(value))
        new = {name: map_inputs(part, resolve, f"{key}.{name}" if key else name, needs[name]) for name, part in parts.items()}
        changed = {name: part for name, part in new.items() if part is not parts[name]}
        return value.model_copy(update=changed) if changed else value
    if isinstance(value, str):
        return resolve(key, value, need) if need else value
    if isinstance(value, Mapping):
        new = {name: map_inputs(part, resolve, f"{key}.{name}", need) for name, part in value.items()}
        return new if any(new[name] is not part for name, part in value.items()) else value
    if isinstance(value, (list, tuple)):
        items = [map_inputs(item, resolve, key, need) for item in value]
        return type(value)(items) if any(new is not old for new, old in zip(items, value, strict=True)) else value
    return value


@cache
def _needs(kind: type[Section]) -> dict[str, str]:
    """Return what each key of a section names that is fetched; empty for other keys."""
    return {name: _need(field.annotation, field.metadata) for name, field in kind.model_fields.items()}


def _need(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    marks = (*metadata, *getattr(annotation, "__metadata__", ()))
    here = [mark.need for mark in marks if isinstance(mark, Fetched)]
    return next(filter(None, [*here, *map(_need, get_args(annotation))]), "")

"""A stereotype pair, and its validation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ropewalk.cluster.errors import DataError

NORMALIZATIONS = ("sum", "token")
By = Literal["sum", "token"]  # compare nats of whole sentences, or means per token if lengths differ (StereoSet)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two sentences that differ in a group of people, or in a statement about one; the model prefers the likelier.

    With `context` the sentences follow it. `target` marks pairs about the same people: they are not independent of each other,
    and intervals are clustered by it.
    """

    suite: str
    number: int  # position in the file, from 1
    more: str  # the stereotype
    less: str
    target: str
    bias_type: str
    context: str = ""
    unrelated: str | None = None  # a meaningless sentence
    by: By = "sum"

    @property
    def key(self) -> str:
        """Key of the pair among all questions of an audit."""
        return f"{self.suite}:{self.number}"


def make_pair(where: str, **fields: Any) -> Pair:
    """Return a pair of validated fields. Raises DataError that names the line."""
    for name in ("more", "less"):
        value = fields.get(name)
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{where}: {name!r} must be a sentence, is {value!r}; correct or remove the line")
    if fields["more"].strip() == fields["less"].strip():
        raise DataError(
            f"{where}: both sentences are {fields['more'].strip()[:80]!r}, which shows no preference; remove the line"
        )
    for name in ("context", "unrelated", "target", "bias_type"):
        if fields.get(name) is not None and not isinstance(fields[name], str):
            raise DataError(f"{where}: {name!r} must be text, is {fields[name]!r}; correct the line")
    fields["target"] = (fields.get("target") or "").strip().lower() or f"item {fields['number']}"
    fields["bias_type"] = (fields.get("bias_type") or "").strip().lower() or "unnamed"
    fields["context"] = (fields.get("context") or "").strip()
    return Pair(**fields)


def require_columns(row: Mapping[str, Any], names: tuple[str, ...], where: str) -> None:
    """Raise DataError if a row lacks a column."""
    missing = [name for name in names if row.get(name) is None]
    if missing:
        raise DataError(f"{where}: {', '.join(missing)} missing; it has: {', '.join(map(str, row))}")

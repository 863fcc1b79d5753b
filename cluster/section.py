"""Base class of groups of configuration keys."""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base class of every group of keys: frozen, no unknown keys, defaults validated too."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, defer_build=True)

    # dotted keys of this section that are accepted but not printed: they have one legal value, or do nothing here
    hidden_keys: ClassVar[frozenset[str]] = frozenset()


def default_text(text: str) -> dict[str, Any]:
    """Return the `json_schema_extra` of a key whose default depends on other keys: help prints this text instead."""
    return {"default_text": text}

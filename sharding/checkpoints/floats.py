"""Infinities and NaN in JSON, written as `{"__float__": "Infinity"}` like transformers does."""

import math
from typing import Any

TAG = "__float__"


def encode_floats(value: Any) -> Any:
    """Replace floats that JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return {TAG: "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    return _map(encode_floats, value)


def decode_floats(value: Any) -> Any:
    """Reverse `encode_floats`."""
    return float(value[TAG]) if _is_special(value) else _map(decode_floats, value)


def null_floats(value: Any) -> Any:
    """Return encoded values as checkpoints of older versions hold them: such floats are null there."""
    return None if _is_special(value) else _map(null_floats, value)


def restore_floats(saved: Any, defaults: Any) -> Any:
    """Return encoded values of a checkpoint, with the defaults' infinities in place of nulls of older versions."""
    if saved is None and _is_special(defaults):
        return defaults
    if isinstance(saved, dict) and isinstance(defaults, dict):
        return {key: restore_floats(inner, defaults.get(key)) for key, inner in saved.items()}
    if isinstance(saved, list) and isinstance(defaults, list) and len(saved) == len(defaults):
        return [restore_floats(inner, default) for inner, default in zip(saved, defaults, strict=True)]
    return saved


def _is_special(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {TAG}


def _map(function: Any, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: function(inner) for key, inner in value.items()}
    return [function(inner) for inner in value] if isinstance(value, (list, tuple)) else value

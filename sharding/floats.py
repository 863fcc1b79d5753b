"""Infinities and NaN in plain values: JSON has none, so they are written as `{"__float__": "Infinity"}`, as transformers does."""

import math
from typing import Any

TAG = "__float__"


def encoded(value: Any) -> Any:
    """Plain values without floats that JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return {TAG: "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    return _mapped(encoded, value)


def decoded(value: Any) -> Any:
    """The values that were `encoded`."""
    return float(value[TAG]) if _is_special(value) else _mapped(decoded, value)


def nulled(value: Any) -> Any:
    """Encoded values as older checkpoints have them, which lost such floats."""
    return None if _is_special(value) else _mapped(nulled, value)


def restored(saved: Any, defaults: Any) -> Any:
    """Encoded values of a checkpoint, with the defaults' infinities where an older one has lost them."""
    if saved is None and _is_special(defaults):
        return defaults
    if isinstance(saved, dict) and isinstance(defaults, dict):
        return {key: restored(inner, defaults.get(key)) for key, inner in saved.items()}
    if isinstance(saved, list) and isinstance(defaults, list) and len(saved) == len(defaults):
        return [restored(inner, default) for inner, default in zip(saved, defaults, strict=True)]
    return saved


def _is_special(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {TAG}


def _mapped(function: Any, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: function(inner) for key, inner in value.items()}
    return [function(inner) for inner in value] if isinstance(value, (list, tuple)) else value

"""Numbers, nouns and values as people read them."""

import json
from collections.abc import Mapping
from typing import Any

CAUSED_BY = "; caused by: "  # between the message of an exception and that of the one it wraps


def counted(number: float | str, noun: str) -> str:
    """Return a number with its noun: `1 node`, `2.5 GPUs`, `1..4 nodes`."""
    text = f"{number:g}" if isinstance(number, float) else str(number)
    return f"{text} {noun}{'' if text == '1' else 's'}"


def format_parameters(parameters: Mapping[str, Any]) -> str:
    """`optim.lr=0.00123 optim.weight_decay=0.1`: keys with their values, as a person reads them."""
    return " ".join(f"{key}={format_value(value)}" for key, value in parameters.items())


def format_value(value: Any) -> str:
    """One value of a configuration: a number in four digits, a word as it is, anything else as JSON."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)

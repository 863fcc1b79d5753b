"""Numbers, nouns and configuration values formatted for people."""

import json
from collections.abc import Mapping
from typing import Any

CAUSED_BY = "; caused by: "  # between the message of an exception and that of its cause


def counted(number: float | str, noun: str) -> str:
    """Return a number with its noun, in the plural where needed: `1 node`, `2.5 GPUs`, `1..4 nodes`."""
    text = f"{number:g}" if isinstance(number, float) else str(number)
    return f"{text} {noun}{'' if text == '1' else 's'}"


def format_parameters(parameters: Mapping[str, Any]) -> str:
    """Format parameters for people: `optim.lr=0.00123 optim.weight_decay=0.1`."""
    return " ".join(f"{key}={format_value(value)}" for key, value in parameters.items())


def format_value(value: Any) -> str:
    """Format a configuration value: a float with four digits, a string unchanged, anything else as JSON."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)

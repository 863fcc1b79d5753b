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


def format_bytes(number: float) -> str:
    """Format a size with a binary unit: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"

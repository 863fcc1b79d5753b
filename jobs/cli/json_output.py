"""Output of `--json`: one JSON value per line on stdout."""

import json
import math
import sys
from typing import Any


def print_json(value: Any) -> None:
    """Print a value in one line at once. Numbers that JSON does not have, such as NaN, are null; paths are strings."""
    try:
        text = json.dumps(value, default=str, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), default=str)
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _finite(value: Any) -> Any:
    """Return the value with null for NaN and infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value

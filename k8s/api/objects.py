"""Kubernetes objects as plain data, and conversion of their quantities and times."""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

Object = dict[str, Any]

DECIMAL, BINARY = "kMGTPE", "KMGTPE"
UNITS = {"": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3}
UNITS |= {unit: 1e3 ** (i + 1) for i, unit in enumerate(DECIMAL)} | {f"{u}i": 2.0 ** (10 * (i + 1)) for i, u in enumerate(BINARY)}
_QUANTITY = re.compile(r"([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)([a-zA-Z]*)")


def amount(value: str | int | float) -> float:
    """Convert a Kubernetes quantity to a number: 500m is 0.5, 1Gi is 2^30."""
    match = _QUANTITY.fullmatch(str(value))
    assert match is not None, f"{value!r} is not a quantity"
    return float(match[1]) * UNITS[match[2]]


def format_amount(resource: str, value: float) -> str:
    """Format an amount of a resource: `3 CPU`, `4.0 GiB memory`, `8 nvidia.com/gpu`."""
    if resource == "memory":
        return f"{value / 2**30:.1f} GiB memory"
    units = {"cpu": "CPU", "pods": "pods"}
    return f"{value:g} {units.get(resource, resource)}"


def seconds_of(timestamp: str | None) -> float:
    """Convert a Kubernetes timestamp to seconds since the epoch; 0 if there is none."""
    return datetime.fromisoformat(timestamp).timestamp() if timestamp else 0.0


def end_of(job: Object) -> Mapping[str, Any] | None:
    """Return the condition with which a Job has ended, or None if it has not."""
    conditions = (job.get("status") or {}).get("conditions") or []
    return next((c for c in conditions if c["type"] in {"Complete", "Failed"} and c["status"] == "True"), None)

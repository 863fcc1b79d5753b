"""Autoscaling policy: the number of replicas for the current load, evaluated by Ray Serve once a second."""

import json
import math
import time
from pathlib import Path
from typing import Any

STALE_SECONDS = 15.0  # an older load is ignored: the gateway is down


class LoadPolicy:
    """Scales to as many replicas as have slots for all running and waiting requests of the gateway.

    Ray Serve's own request counts are always zero, since requests bypass it. Ray Serve applies bounds and delays.
    """

    def __init__(self, load_file: str, version: str, slots: int, busy: float) -> None:
        self.load_file, self.version, self.slots, self.busy = Path(load_file), version, slots, busy

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Return the number of replicas, and an empty state for the next call."""
        requests = count_requests(self.load_file, self.version)
        if requests is None:
            return context.target_num_replicas, {}
        return max(context.capacity_adjusted_min_replicas, replicas_for(requests, self.slots, self.busy)), {}


def replicas_for(requests: float, slots: int, busy: float) -> int:
    """Return the number of replicas at which at most this share of the slots is busy."""
    return math.ceil(requests / (slots * busy))


def count_requests(file: Path, version: str) -> float | None:
    """Count running and waiting requests of a version; None if the load is unknown."""
    try:
        load = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    if time.time() - float(load.get("time", 0)) > STALE_SECONDS:
        return None
    counts = (load.get("versions") or {}).get(version)
    return float(counts.get("running", 0) + counts.get("queued", 0)) if counts else 0.0

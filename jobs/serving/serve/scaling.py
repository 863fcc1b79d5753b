"""Autoscaling policy: the number of replicas for the current load, evaluated by Ray Serve once a second."""

import math
import time
from pathlib import Path
from typing import Any

from ropewalk.jobs.serving.serve.files import read_load

STALE_SECONDS = 15.0  # an older load is ignored: the gateway is down


class LoadPolicy:
    """Scales to as many replicas as have slots for all running and waiting requests, with at most a share `busy` of them in use.

    Ray Serve's own request counts are always zero, since requests bypass it. Ray Serve applies bounds and delays.
    """

    def __init__(self, load_file: str, version: str, slots: int, busy: float) -> None:
        self.load_file, self.version, self.slots, self.busy = Path(load_file), version, slots, busy

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Return the number of replicas, and an empty state for the next call."""
        try:
            load = read_load(self.load_file)
        except OSError:
            load = {}
        if time.time() - float(load.get("time", 0)) > STALE_SECONDS:
            return context.target_num_replicas, {}
        counts = (load.get("versions") or {}).get(self.version) or {}
        requests = counts.get("running", 0) + counts.get("queued", 0)
        return max(context.capacity_adjusted_min_replicas, math.ceil(requests / (self.slots * self.busy))), {}

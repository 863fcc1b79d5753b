"""How many replicas the load asks for: the policy that Ray Serve's autoscaling asks once a second."""

import json
import math
import time
from pathlib import Path
from typing import Any

STALE_SECONDS = 15.0  # a load that is older says nothing: the gateway is away


class LoadPolicy:
    """As many replicas as have slots for all requests that the gateway has under way or waiting.

    Ray Serve counts its own requests only, and those of this program never pass it: the gateway's take their place.
    Bounds and delays are applied by Ray Serve.
    """

    def __init__(self, load_file: str, version: str, slots: int, busy: float) -> None:
        self.load_file, self.version, self.slots, self.busy = Path(load_file), version, slots, busy

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Replicas, and the state that is given back the next time: none."""
        requests = load_of(self.load_file, self.version)
        if requests is None:
            return context.target_num_replicas, {}
        return max(context.capacity_adjusted_min_replicas, replicas_for(requests, self.slots, self.busy)), {}


def replicas_for(requests: float, slots: int, busy: float) -> int:
    """Replicas whose slots are busy at most to this share."""
    return math.ceil(requests / (slots * busy))


def load_of(file: Path, version: str) -> float | None:
    """Requests of a version that are under way or waiting; None where nothing is known."""
    try:
        load = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    if time.time() - float(load.get("time", 0)) > STALE_SECONDS:
        return None
    counts = (load.get("versions") or {}).get(version)
    return float(counts.get("running", 0) + counts.get("queued", 0)) if counts else 0.0

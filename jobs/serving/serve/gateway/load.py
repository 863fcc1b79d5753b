"""How loaded the endpoint is, in a small file: what autoscaling, canaries and drains look at."""

import asyncio
import json
import statistics
import time
from typing import Any

from ropewalk.cluster.run.files import write_atomically
from ropewalk.jobs.serving.serve.gateway.server import Gateway

_EVERY_SECONDS = 0.5


async def write_load(gateway: Gateway) -> None:
    """Write the file twice a second, for ever."""
    path = gateway.settings.load_file
    began, last_requests, last_time = time.time(), 0, time.monotonic()
    while path is not None:
        await asyncio.sleep(_EVERY_SECONDS)
        now, requests = time.monotonic(), sum(total[0] for total in gateway.context.metrics.totals.values())
        load = load_of(gateway)
        load |= {"since": began, "requests_per_second": round((requests - last_requests) / (now - last_time), 3)}
        last_requests, last_time = requests, now
        write_atomically(path, json.dumps(load), durable=False)


def load_of(gateway: Gateway) -> dict[str, Any]:
    """Requests that run, wait and have failed, by version; what runs on each replica."""
    metrics, queues = gateway.context.metrics, gateway.context.table.queues
    versions: dict[str, Any] = {}
    for name in queues.keys() | metrics.totals.keys():
        requests, errors = metrics.totals.get(name, (0, 0))
        first = metrics.recent_first.pop(name, [])
        queue = queues.get(name)
        versions[name] = {
            "running": queue.running if queue is not None else 0,
            "queued": queue.waiting if queue is not None else 0,
            "requests": requests,
            "errors": errors,
            "first_token_seconds_p50": round(statistics.median(first), 6) if first else None,
        }
    replicas = {one: {"running": state.running} for queue in queues.values() for one, state in queue.replicas.items()}
    return {"time": time.time(), "connections": len(gateway.connections), "versions": versions, "replicas": replicas}

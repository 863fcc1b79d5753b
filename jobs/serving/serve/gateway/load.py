"""Load of a gateway, written to a file: the input of autoscaling, canaries and draining."""

import asyncio
import json
import statistics
import time
from typing import Any

from ropewalk.cluster.run.files import write_atomically
from ropewalk.cluster.run.optional_writes import OptionalWrites
from ropewalk.jobs.serving.serve.gateway.server import Gateway

_LOAD_SECONDS = 0.5


async def write_load(gateway: Gateway) -> None:
    """Write the load twice a second, forever. A full disk costs the file, and nothing else."""
    path = gateway.settings.load_file
    started, last_requests, last_time, writes = time.time(), 0, time.monotonic(), OptionalWrites("load of the gateway")
    while path is not None:
        await asyncio.sleep(_LOAD_SECONDS)
        now, requests = time.monotonic(), sum(total[0] for total in gateway.context.metrics.totals.values())
        rate = round((requests - last_requests) / (now - last_time), 3)
        last_requests, last_time = requests, now
        load = json.dumps({**load_of(gateway), "since": started, "requests_per_second": rate})
        with writes:
            write_atomically(path, load, durable=False)


def load_of(gateway: Gateway) -> dict[str, Any]:
    """Return running, waiting and failed requests by version, and running requests by replica."""
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
    replicas = {name: {"running": state.running} for queue in queues.values() for name, state in queue.replicas.items()}
    return {"time": time.time(), "connections": len(gateway.server.connections), "versions": versions, "replicas": replicas}

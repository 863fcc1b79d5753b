"""python -m ropewalk.jobs.serving.serve.gateway SETTINGS.json --listen FD --lock FILE --parent PID: one gateway of an endpoint.

An endpoint has two of them. The one that holds the lock accepts connections from the socket that their parent listens on; the
other waits for the lock, and takes over as soon as the first one is gone.
"""

import argparse
import asyncio
import fcntl
import gc
import json
import logging
import os
import signal
import socket
import ssl
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import uvloop
from aiohttp import web
from aiohttp.http import HttpProcessingError

from ropewalk.cluster.errors import EXIT_USER_MISTAKE, ConfigError
from ropewalk.cluster.process.sockets import raise_open_files
from ropewalk.cluster.run.files import write_atomically
from ropewalk.cluster.run.optional_writes import OptionalWrites
from ropewalk.jobs.inference.engines.engine import TOKEN_VARIABLE
from ropewalk.jobs.inference.engines.parent import end_with_parent
from ropewalk.jobs.serving.feedback.capture import Capture
from ropewalk.jobs.serving.serve.gateway.exchange.client_stream import Context
from ropewalk.jobs.serving.serve.gateway.exchange.metrics import Metrics
from ropewalk.jobs.serving.serve.gateway.routing.table import Table
from ropewalk.jobs.serving.serve.gateway.server import Gateway
from ropewalk.jobs.serving.serve.gateway.settings import GatewaySettings, read_settings
from ropewalk.jobs.serving.serve.gateway.upstream import Upstreams

BEAT_SECONDS = 1.0
LOAD_SECONDS = 0.5  # between writes of the load

log = logging.getLogger(__name__)


def main() -> None:
    """Serve once the lock is free; exit 2 with one line for a mistake in the settings."""
    parser = argparse.ArgumentParser(prog="python -m ropewalk.jobs.serving.serve.gateway", description="Gateway of an endpoint.")
    parser.add_argument("settings", type=Path, help="JSON file with settings, see jobs/serving/serve/gateway/settings.py")
    parser.add_argument("--listen", type=int, required=True, help="descriptor of the listening socket")
    parser.add_argument("--lock", type=Path, required=True, help="file whose lock the serving gateway holds")
    parser.add_argument("--parent", type=int, required=True, help="process with which the gateway ends")
    arguments = parser.parse_args()
    end_with_parent(arguments.parent)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # SIGTERM is blocked: schedulers send it to all processes of a job
    logging.basicConfig(level=logging.INFO, format="%(asctime)s gateway %(process)d %(levelname)s %(message)s")
    logging.getLogger("aiohttp.server").addFilter(_is_no_bad_request)
    try:
        settings = read_settings(arguments.settings)
        settings.tokens()
        tls = settings.tls_context()
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(EXIT_USER_MISTAKE)
    if settings.token_file is not None and settings.token_file.stat().st_mode & 0o007:
        log.warning("auth: other users can read %s; run: chmod 600 %s", settings.token_file, settings.token_file)
    raise_open_files(2 * settings.max_connections + 100)
    lock = os.open(arguments.lock, os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.pwrite(lock, b"%-20d" % os.getpid(), 0)
    uvloop.run(_serve(settings, socket.socket(fileno=arguments.listen), tls, lock))


def _is_no_bad_request(record: logging.LogRecord) -> bool:
    """Return False for the traceback of a malformed request, which quotes the request; the client gets the error."""
    return record.exc_info is None or not isinstance(record.exc_info[1], HttpProcessingError)


async def _serve(settings: GatewaySettings, listening: socket.socket, tls: ssl.SSLContext | None, lock: int) -> None:
    """Serve until SIGINT, then finish open requests and store what was captured."""
    upstreams = Upstreams(os.environ.get(TOKEN_VARIABLE))
    table = Table(settings, upstreams)
    table.look()
    capture = Capture(settings.feedback_folder, settings.capture) if settings.feedback_folder is not None else None
    if capture is not None:
        await capture.start()
    gateway = Gateway(Context(settings, table, upstreams, Metrics(), capture))
    runner = web.ServerRunner(gateway.server, shutdown_timeout=settings.drain_seconds)
    await runner.setup()
    gc.collect()
    gc.freeze()  # what was imported: a full collection would look through all of it while clients wait
    await web.SockSite(runner, listening, ssl_context=tls).start()
    log.info("serving")
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stopped.set)
    services = [table.follow(), gateway.follow_tokens(), _write_load(gateway), _beat(lock)]
    tasks = [asyncio.create_task(service) for service in services]
    for task in tasks:
        task.add_done_callback(_exit_if_failed)
    await stopped.wait()
    await runner.cleanup()
    for task in tasks:
        task.cancel()
    if capture is not None:
        await capture.close()
    await upstreams.close()


async def _write_load(gateway: Gateway) -> None:
    """Write the input of autoscaling, canaries and draining twice a second, forever. A full disk costs only the file."""
    path = gateway.settings.load_file
    started, last_requests, last_time, writes = time.time(), 0, time.monotonic(), OptionalWrites("load of the gateway")
    while path is not None:
        await asyncio.sleep(LOAD_SECONDS)
        now, requests = time.monotonic(), sum(total[0] for total in gateway.context.metrics.totals.values())
        rate = round((requests - last_requests) / (now - last_time), 3)
        last_requests, last_time = requests, now
        load = json.dumps({**_load_of(gateway), "since": started, "requests_per_second": rate})
        with writes:
            write_atomically(path, load, durable=False)


def _load_of(gateway: Gateway) -> dict[str, Any]:
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


async def _beat(lock: int) -> None:
    """Touch the lock's file regularly, forever: the parent replaces a gateway that stops doing so."""
    while True:
        os.utime(lock)
        await asyncio.sleep(BEAT_SECONDS)


def _exit_if_failed(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("a service failed; another gateway takes over", exc_info=error)
        os._exit(1)


if __name__ == "__main__":
    main()

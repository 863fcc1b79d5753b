"""A gateway process, which waits until the keeper makes it the leader.

Usage: python -m ropewalk.jobs.serving.serve.gateway.worker SETTINGS.json FD
"""

import asyncio
import contextlib
import json
import logging
import os
import select
import signal
import socket
import statistics
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from ropewalk.cluster.run.files import write_atomically
from ropewalk.jobs.serving.serve.gateway.exchange.archive import Archive
from ropewalk.jobs.serving.serve.gateway.exchange.cache import AnswerCache
from ropewalk.jobs.serving.serve.gateway.exchange.context import Context
from ropewalk.jobs.serving.serve.gateway.exchange.metrics import Metrics
from ropewalk.jobs.serving.serve.gateway.http.upstream import Upstreams
from ropewalk.jobs.serving.serve.gateway.routing.table import Table
from ropewalk.jobs.serving.serve.gateway.server import Gateway
from ropewalk.jobs.serving.serve.gateway.settings import GatewaySettings, read_settings
from ropewalk.jobs.serving.serve.gateway.sockets.channel import Kind, Message, receive, send
from ropewalk.jobs.serving.serve.gateway.sockets.files import raise_open_files
from ropewalk.jobs.serving.serve.gateway.sockets.journal import Header, Journal
from ropewalk.jobs.serving.serve.gateway.sockets.workers import die_with_parent, take_channel

if TYPE_CHECKING:
    from ropewalk.jobs.serving.feedback.capture import Capture

log = logging.getLogger(__name__)

_ALIVE_SECONDS = 2.0
_LOAD_SECONDS = 0.5


class Leader:
    """The gateway that serves: takes connections from the keeper and reports closed ones."""

    def __init__(self, settings: GatewaySettings, channel: socket.socket, journal: Journal) -> None:
        self._channel, self._journal, self._settings = channel, journal, settings
        self._records = {number: record for record, number in journal.records()}
        self._closed: list[int] = []
        self._over = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until the keeper ends it and all open requests have finished."""
        settings = self._settings
        upstreams = Upstreams(os.environ.get("ROPEWALK_ENGINE_TOKEN"))
        table = Table(settings.routes, upstreams, per_slot=settings.queue_per_slot, imbalance=settings.imbalance)
        table.look()
        archive = Archive(self._journal)
        recorder = await open_recorder(settings, archive.durable)
        archive.recover(recorder)
        context = Context(settings, self._journal, table, upstreams, AnswerCache(settings.cache_bytes), Metrics(), archive)
        self.gateway = Gateway(context, self._note_closed, recorder)
        asyncio.get_running_loop().add_reader(self._channel.fileno(), self._receive)
        self._receive()
        for service in (table.follow(), self.gateway.look_after(), self._tell_alive(), write_load(self.gateway)):
            self._start(service)
        await self._over.wait()
        if recorder is not None:
            await recorder.close()

    # --- the keeper

    def _receive(self) -> None:
        while True:
            try:
                message = receive(self._channel)
            except BlockingIOError:
                return
            if message is None:  # the keeper died, and with it the sockets
                os.kill(os.getpid(), signal.SIGKILL)
                return
            self._handle(message)

    def _handle(self, message: Message) -> None:
        if message.kind is Kind.CONNECTIONS:
            self._start(self._adopt(message))
        elif message.kind is Kind.LEAVE:
            self.gateway.leave()
            self._start(self._await_end())

    async def _adopt(self, message: Message) -> None:
        for number, handle in zip(message.numbers, message.sockets, strict=True):
            await self.gateway.adopt(number, socket.socket(fileno=handle), self._records.pop(number, None))

    def _note_closed(self, number: int) -> None:
        if not self._closed:
            asyncio.get_running_loop().call_soon(self._tell_closed)
        self._closed.append(number)

    def _tell_closed(self) -> None:
        """Report closed connections, after their own descriptors are closed."""
        numbers, self._closed = self._closed, []
        for at in range(0, len(numbers), 1024):
            part = numbers[at : at + 1024]
            try:
                send(self._channel, Kind.CLOSED, 0, part)
            except BlockingIOError:
                self._closed += part
        if self._closed:
            asyncio.get_running_loop().call_later(0.01, self._tell_closed)

    async def _tell_alive(self) -> None:
        while True:
            with contextlib.suppress(BlockingIOError):
                send(self._channel, Kind.ALIVE)
            await asyncio.sleep(_ALIVE_SECONDS)

    async def _await_end(self) -> None:
        while self.gateway.connections or self._closed:
            await asyncio.sleep(0.05)
        self._over.set()

    def _start(self, service: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(service)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the gateway failed; the gateway is replaced", exc_info=error)
            os.kill(os.getpid(), signal.SIGKILL)


async def open_recorder(settings: GatewaySettings, on_durable: Callable[[Sequence[str]], None]) -> "Capture | None":
    """Start the capture of exchanges, or return None if the settings name no folder for it."""
    if settings.feedback_folder is None:
        return None
    from ropewalk.jobs.serving.feedback.capture import Capture, CaptureConfig

    config = None if settings.capture is None else CaptureConfig.model_validate(settings.capture)
    capture = Capture(settings.feedback_folder, config, on_durable)
    await capture.start()
    return capture


async def write_load(gateway: Gateway) -> None:
    """Write the load twice a second, forever: the input of autoscaling, canaries and draining."""
    path = gateway.settings.load_file
    began, last_requests, last_time = time.time(), 0, time.monotonic()
    while path is not None:
        await asyncio.sleep(_LOAD_SECONDS)
        now, requests = time.monotonic(), sum(total[0] for total in gateway.context.metrics.totals.values())
        rate = round((requests - last_requests) / (now - last_time), 3)
        last_requests, last_time = requests, now
        load = json.dumps({**load_of(gateway), "since": began, "requests_per_second": rate})
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
    return {"time": time.time(), "connections": len(gateway.connections), "versions": versions, "replicas": replicas}


def main() -> None:
    """Wait for the keeper's message, then lead."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the keeper decides when to stop
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s gateway %(process)d %(levelname)s %(message)s")
    settings = read_settings(Path(sys.argv[1]))
    raise_open_files(settings.max_connections * 2 + 100)
    channel = take_channel(int(sys.argv[2]))
    send(channel, Kind.READY)
    select.select([channel], [], [])
    message = receive(channel)
    if message is None:
        return
    assert message.kind is Kind.LEAD
    journal = Journal(message.sockets[0])
    journal.add_to_header(Header.GENERATION)
    uvloop.run(Leader(settings, channel, journal).run())


if __name__ == "__main__":
    main()

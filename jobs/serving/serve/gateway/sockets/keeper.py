"""The keeper: owns the listening socket, a duplicate of each connection and the journal; replaces gateways that die.

It reads no byte of what clients send. A gateway that is killed loses nothing: its successor, which waits beside it with all
modules loaded, gets the same sockets and the same journal within milliseconds.
"""

import ipaddress
import json
import logging
import os
import selectors
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.files import write_atomically
from ropewalk.jobs.serving.serve.gateway.settings import GatewaySettings
from ropewalk.jobs.serving.serve.gateway.sockets.channel import Kind
from ropewalk.jobs.serving.serve.gateway.sockets.files import raise_open_files
from ropewalk.jobs.serving.serve.gateway.sockets.journal import create_journal
from ropewalk.jobs.serving.serve.gateway.sockets.workers import Worker

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
SILENT_SECONDS = 30.0  # a gateway whose loop does not turn for so long is replaced
LEAVE_SECONDS = 5.0  # above the time that open requests have
_BACKLOG = 4096
_ACCEPT_AT_ONCE = 64
_SPARE_RECORDS = 64


class Keeper:
    """Keeps an endpoint's sockets for as long as it lives."""

    def __init__(self, settings: GatewaySettings, file: Path) -> None:
        settings.token()  # a mistake shows before anything listens
        self.settings, self._file = settings, file
        self._most = min(settings.max_connections, raise_open_files(settings.max_connections + 100) - 100)
        self._listening = _listen(settings)
        self._journal = create_journal(self._most + _SPARE_RECORDS, settings.journal_bytes)
        self._connections: dict[int, socket.socket] = {}
        self._number = 0
        self._leaving_since: float | None = None
        self._parent = os.getppid()
        self._orphan_since: float | None = None
        self._selector = selectors.DefaultSelector()
        self._live: Worker | None = None
        self._spare = self._start()
        self.replaced = 0

    @property
    def address(self) -> str:
        """Where clients find it."""
        host, port = self._listening.getsockname()[:2]
        reachable = host
        if ipaddress.ip_address(host).is_unspecified:
            reachable = "[::1]" if ":" in host else "127.0.0.1"
        elif ":" in host:
            reachable = f"[{host}]"
        return f"http://{reachable}:{port}"

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, or until the parent has been gone for `orphan_seconds`."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.leave())
        wake, theirs = socket.socketpair()  # a signal ends the wait
        for end in (wake, theirs):
            end.setblocking(False)
        signal.set_wakeup_fd(theirs.fileno())
        self._selector.register(wake, selectors.EVENT_READ)
        self._watch_listening(on=True)
        told = {"address": self.address, "port": self._listening.getsockname()[1], "pid": os.getpid()}
        write_atomically(self.settings.address_file, json.dumps(told), durable=False)
        log.info("listening on %s", self.address)
        while not self._over():
            for key, _ in self._selector.select(LOOK_SECONDS):
                if key.fileobj is self._listening:
                    self._accept()
                elif isinstance(key.data, Worker):
                    self._hear(key.data)
                else:
                    with suppress(BlockingIOError):
                        wake.recv(4096)
            self._look_after()
        for worker in (self._live, self._spare):
            if worker is not None:
                worker.end()

    def leave(self) -> None:
        """Take no new connection; let the gateway end what is open."""
        if self._leaving_since is None:
            self._leaving_since = time.monotonic()
            self._watch_listening(on=False)
            if self._live is not None:
                self._live.leave()

    # --- connections

    def _accept(self) -> None:
        accepted: list[tuple[int, int]] = []
        for _ in range(min(_ACCEPT_AT_ONCE, self._most - len(self._connections))):
            try:
                connection, _ = self._listening.accept()
            except OSError:  # nobody is there any more, or no descriptor is left: the kernel's queue waits
                break
            self._number += 1
            self._connections[self._number] = connection
            accepted.append((self._number, connection.fileno()))
        if accepted and self._live is not None:
            self._live.add(accepted)
        if len(self._connections) >= self._most:
            self._watch_listening(on=False)

    def _close(self, numbers: tuple[int, ...]) -> None:
        for number in numbers:
            if (connection := self._connections.pop(number, None)) is not None:
                connection.close()
        if self._leaving_since is None and len(self._connections) < self._most:
            self._watch_listening(on=True)

    def _watch_listening(self, *, on: bool) -> None:
        known = self._listening in self._selector.get_map()
        if on and not known:
            self._selector.register(self._listening, selectors.EVENT_READ)
        elif known and not on:
            self._selector.unregister(self._listening)

    # --- gateways

    def _start(self) -> Worker:
        worker = Worker(self._file)
        self._selector.register(worker.channel, selectors.EVENT_READ, worker)
        return worker

    def _hear(self, worker: Worker) -> None:
        messages, gone = worker.messages()
        for message in messages:
            if message.kind is Kind.CLOSED:
                self._close(message.numbers)
        if gone:
            self._remove_worker(worker)

    def _remove_worker(self, worker: Worker) -> None:
        self._selector.unregister(worker.channel)
        worker.end()
        log.info("gateway %d ended with %s", worker.process.pid, worker.process.returncode)
        if worker is self._spare:
            self._spare = self._start()
        elif worker is self._live:
            self._live = None
            self.replaced += 1

    def _look_after(self) -> None:
        """Once a turn: a live gateway leads, another waits, none hangs."""
        if self._live is not None:
            self._live.flush()
            if time.monotonic() - self._live.heard > SILENT_SECONDS:
                log.warning("gateway %d is silent for %.0f s: replaced", self._live.process.pid, SILENT_SECONDS)
                self._remove_worker(self._live)
        if self._live is None and self._spare.ready and not self._done_leaving():
            self._live = self._spare
            for message in self._live.messages()[0]:
                assert message.kind is not Kind.CLOSED
            self._live.lead(self._journal, [(number, one.fileno()) for number, one in self._connections.items()])
            if self._leaving_since is not None:
                self._live.leave()
            self._spare = self._start()

    # --- the end

    def _done_leaving(self) -> bool:
        return self._leaving_since is not None and not self._connections

    def _over(self) -> bool:
        now = time.monotonic()
        if self.settings.orphan_seconds is not None and os.getppid() != self._parent:
            self._orphan_since = self._orphan_since or now
            if now - self._orphan_since >= self.settings.orphan_seconds:
                self.leave()
        if self._leaving_since is None:
            return False
        late = now - self._leaving_since > self.settings.drain_seconds + LEAVE_SECONDS
        return late or (self._live is None and (self._done_leaving() or self.replaced > 0))


def _listen(settings: GatewaySettings) -> socket.socket:
    """The listening socket. Raises ConfigError where the address cannot be had."""
    port = settings.port
    if not port:
        with suppress(OSError, ValueError, KeyError, TypeError):
            port = int(json.loads(settings.address_file.read_bytes())["port"])
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    for wanted in dict.fromkeys((port, settings.port)):
        try:
            listening = socket.create_server((settings.host, wanted), family=family, backlog=_BACKLOG)
        except OSError as error:
            failed = error
        else:
            listening.setblocking(False)
            return listening
    raise ConfigError(f"host {settings.host}, port {settings.port}: {failed}; choose another, or port 0 for a free one")

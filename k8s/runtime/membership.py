"""Connections from the pods of a run to its coordinator. A pod is a member while it is connected; a silent pod is lost."""

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

from ropewalk.cluster.process.forking import wait_by_polling
from ropewalk.cluster.supervise.allocation import AgentSpec, StoreSpec
from ropewalk.k8s.runtime.handshake import new_nonce, proves_key, welcome
from ropewalk.k8s.runtime.pod_status import Pod
from ropewalk.k8s.runtime.protocol import HEARTBEAT, LONGEST_BYTES, Message, StartAgent, StartStore, pack, unpack
from ropewalk.k8s.runtime.timings import AGENT_POLL_SECONDS, FAREWELL_SECONDS, HEARTBEAT_SECONDS, LOST_SECONDS

log = logging.getLogger(__name__)

LOST_CODE = 255  # exit code of an agent whose pod is lost
MOST_REFUSED = 1000  # refused callers that are remembered and logged
LONGEST_NAME, LONGEST_REASON = 64, 300  # characters that are kept of a refused caller

Admit = Callable[[Pod, str], Pod]  # (pod that a caller claims to be, its address) -> verified pod; raises RefusedError


class RefusedError(Exception):
    """The caller may not join; the message has the reason."""


async def _next_line(reader: asyncio.StreamReader) -> bytes:
    """Read the next line of a pod. Raises TimeoutError if it is silent for too long.

    Time in which this process could not run, such as a suspended machine, does not count: lines sent meanwhile are still read.
    """
    for _ in range(round(LOST_SECONDS / HEARTBEAT_SECONDS)):
        with suppress(TimeoutError):
            return await asyncio.wait_for(reader.readline(), HEARTBEAT_SECONDS)
    raise TimeoutError


class RemoteAgent:
    """An agent in another pod, with the interface of a process."""

    pid = 1  # the process that started the agent, in its pod

    def __init__(self, member: "Member", number: int) -> None:
        self.args = f"the agent of pod {member.pod.name}"
        self.number, self._member = number, member
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the agent's exit code once its pod has sent it, 255 if the pod is lost, else None."""
        if self.returncode is None and self._member.gone:
            self.returncode = LOST_CODE
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        return wait_by_polling(self, timeout, AGENT_POLL_SECONDS)

    def send_signal(self, sig: int) -> None:
        """Send SIGUSR2 or SIGKILL; the protocol has no messages for other signals."""
        assert sig in (signal.SIGUSR2, signal.SIGKILL), sig
        self._member.send({"say": "stop" if sig == signal.SIGUSR2 else "kill", "agent": self.number})

    def terminate(self) -> None:
        """Kill the agent, which has no handler for SIGTERM."""
        self.send_signal(signal.SIGKILL)


class Member:
    """A connected pod."""

    def __init__(self, pod: Pod, writer: asyncio.StreamWriter, loop: asyncio.AbstractEventLoop) -> None:
        self.pod, self._writer, self._loop = pod, writer, loop
        self.agent: RemoteAgent | None = None
        self.leaving = False  # Kubernetes deletes it
        self.gone = False  # no longer connected
        self.silent = False  # gone without closing the connection: dead or disconnected

    def send(self, message: Message) -> None:
        """Send the pod a message; does nothing if it is gone."""
        self._loop.call_soon_threadsafe(self._write, message)

    def _write(self, message: Message) -> None:
        if not self._writer.is_closing():
            self._writer.write(pack(message))

    def start(self, number: int, spec: AgentSpec) -> RemoteAgent:
        self.agent = RemoteAgent(self, number)
        self.send(StartAgent.of(number, spec))
        return self.agent

    def start_store(self, number: int, spec: StoreSpec) -> RemoteAgent:
        self.send(StartStore.of(number, spec))
        return RemoteAgent(self, number)

    @property
    def idle(self) -> bool:
        """Return True if the pod can start an agent."""
        return not self.gone and not self.leaving and (self.agent is None or self.agent.poll() is not None)


class Membership:
    """All current and former members. Serves connections in a thread; the methods may be called from any thread."""

    def __init__(self, listener: socket.socket, key: str, admit: Admit) -> None:
        self._listener, self._key, self._admit = listener, key, admit
        self._loop = asyncio.new_event_loop()
        self._by_uid: dict[str, Member] = {}
        self._lock = threading.Lock()
        self._departed: list[Member] = []
        self._refused: dict[str, str] = {}  # reason by uid
        threading.Thread(target=self._run, name="members", daemon=True).start()

    def present(self) -> list[Member]:
        """Return the connected pods, ordered by index."""
        with self._lock:
            return sorted(self._by_uid.values(), key=lambda member: member.pod.index)

    def departed(self) -> list[Member]:
        """Return the pods that have disconnected since the last call."""
        with self._lock:
            gone, self._departed = self._departed, []
        return gone

    def close(self, farewell: Message | None = None) -> None:
        """Send all pods a last message and close their connections."""
        closing: Future[None] = asyncio.run_coroutine_threadsafe(self._close(farewell), self._loop)
        try:
            closing.result(FAREWELL_SECONDS)
        except TimeoutError:
            log.warning("not all pods have received the last message")

    # --- in the thread

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._talk, sock=self._listener, limit=LONGEST_BYTES)
        async with server:
            while True:
                await asyncio.sleep(HEARTBEAT_SECONDS)
                for member in self.present():
                    member._write(HEARTBEAT)

    async def _close(self, farewell: Message | None) -> None:
        for member in self.present():
            if farewell is not None:
                member._write(farewell)
            member._writer.close()
        for member in self.present():
            try:
                await member._writer.wait_closed()
            except OSError:
                continue  # disconnected already

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection from the handshake to its end."""
        member: Member | None = None
        try:
            challenge = new_nonce()
            writer.write(pack({"say": "challenge", "nonce": challenge}))
            hello = unpack(await _next_line(reader))
            pod = await self._verify(hello, challenge, str(writer.get_extra_info("peername")[0]))
            if pod is None:
                return
            writer.write(pack(welcome(self._key, str(hello["nonce"]))))
            member = Member(pod, writer, self._loop)
            self._join(member)
            while line := await _next_line(reader):
                self._handle(member, unpack(line))
        except TimeoutError:
            if member is not None:
                member.silent = True
                log.warning("pod %s has been silent for %.0f s", member.pod.name, LOST_SECONDS)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.info("a connection broke: %s: %s", type(error).__name__, error)
        finally:
            writer.close()
            if member is not None:
                self._drop(member)

    async def _verify(self, hello: Message, challenge: str, caller: str) -> Pod | None:
        """Return the calling pod if it may join, else None."""
        claimed = Pod(**hello["pod"])
        try:
            if not proves_key(self._key, challenge, hello, claimed):
                raise RefusedError("it does not have the run's key")
            return await asyncio.to_thread(self._admit, claimed, caller)
        except RefusedError as error:
            # callers choose these texts
            uid, name, reason = claimed.uid[:LONGEST_NAME], claimed.name[:LONGEST_NAME], str(error)[:LONGEST_REASON]
            if reason != self._refused.get(uid) and len(self._refused) < MOST_REFUSED:  # log repeated calls once
                log.warning("refused a caller from %s that claims to be pod %s: %s", caller, name, reason)
                self._refused[uid] = reason
            return None

    def _join(self, member: Member) -> None:
        with self._lock:
            self._by_uid[member.pod.uid] = member
        log.info("pod %s (%s) has joined", member.pod.name, member.pod.address)

    def _drop(self, member: Member) -> None:
        with self._lock:
            if self._by_uid.get(member.pod.uid) is member:
                del self._by_uid[member.pod.uid]
            self._departed.append(member)
        member.gone = True
        log.info("pod %s has disconnected", member.pod.name)

    def _handle(self, member: Member, message: Message) -> None:
        if message["say"] == "ended" and member.agent is not None and member.agent.number == message["agent"]:
            member.agent.returncode = int(message["code"])
        elif message["say"] == "leaving":
            log.info("pod %s is being deleted", member.pod.name)
            member.leaving = True

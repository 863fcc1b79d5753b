"""The pods of a run that are connected to its coordinator, and their agents; all others are lost."""

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from ropewalk.cluster.membership import members
from ropewalk.cluster.membership.members import Joined, Received
from ropewalk.cluster.membership.protocol import Message
from ropewalk.cluster.membership.server import Event, Server
from ropewalk.cluster.process.forking import wait_by_polling
from ropewalk.cluster.supervise.allocation import AgentSpec, GroupServerSpec
from ropewalk.k8s.runtime.pod_status import Pod
from ropewalk.k8s.runtime.protocol import StartAgent, StartGroupServer
from ropewalk.k8s.runtime.timings import AGENT_POLL_SECONDS, FAREWELL_SECONDS

log = logging.getLogger(__name__)

LOST_CODE = 255  # exit code of an agent whose pod is lost

Admit = Callable[[Pod, str], Pod]  # (pod that a caller claims to be, its address) -> verified pod; raises RefusedError


@dataclass(frozen=True)
class _Peer:
    """A verified pod, with the number and the attempt of the agent that runs in it."""

    pod: Pod
    agent: tuple[int, int] | None

    @classmethod
    def of(cls, hello: Message, caller: str, admit: Admit) -> "_Peer":
        agent = hello.get("agent")
        return cls(admit(Pod(**hello["pod"]), caller), (int(agent[0]), int(agent[1])) if agent else None)


class RemoteAgent:
    """An agent in another pod, with the interface of a process."""

    pid = 1  # the process that started the agent, in its pod

    def __init__(self, member: "Member", number: int, attempt: int) -> None:
        self.args = f"the agent of pod {member.pod.name}"
        self.number, self.attempt, self._member = number, attempt, member
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
    """A connected pod. `send` sends it a message from any thread, and does nothing if it is gone."""

    def __init__(self, pod: Pod, send: Callable[[Message], object]) -> None:
        self.pod, self.send = pod, send
        self.agent: RemoteAgent | None = None
        self.leaving = False  # Kubernetes deletes it
        self.gone = False  # no longer connected
        self.silent = False  # gone without closing the connection: dead or disconnected

    def start(self, number: int, spec: AgentSpec) -> RemoteAgent:
        self.agent = RemoteAgent(self, number, spec.attempt)
        self.send(StartAgent.of(number, spec))
        return self.agent

    def start_group_server(self, number: int, spec: GroupServerSpec) -> RemoteAgent:
        self.send(StartGroupServer.of(number, spec))
        return RemoteAgent(self, number, spec.attempt)

    def runs_agent_of(self, attempt: int) -> bool:
        """Return True if an agent of the attempt runs in the pod."""
        return self.agent is not None and self.agent.attempt == attempt and self.agent.poll() is None

    @property
    def idle(self) -> bool:
        """Return True if the pod can start an agent."""
        return not self.gone and not self.leaving and (self.agent is None or self.agent.poll() is not None)


class Membership:
    """All current and former members. Serves connections in a thread; the methods may be called from any thread.

    `attempt` goes on: agents of it that run in pods that join are taken over, and those of other attempts are killed.
    """

    def __init__(self, listener: socket.socket, key: str, admit: Admit, attempt: int = 0) -> None:
        self.attempt = attempt
        self._loop = asyncio.new_event_loop()
        self._server = Server(key, lambda hello, caller: _Peer.of(hello, caller, admit), self._handle)
        self._members: dict[members.Member, Member] = {}
        self._lock = threading.Lock()
        self._departed: list[Member] = []
        threading.Thread(target=self._run, args=(listener,), name="members", daemon=True).start()

    def present(self) -> list[Member]:
        """Return the connected pods, ordered by index."""
        with self._lock:
            newest = {member.pod.uid: member for member in self._members.values()}
        return sorted(newest.values(), key=lambda member: member.pod.index)

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

    def _run(self, listener: socket.socket) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._server.serve(listener))

    async def _close(self, farewell: Message | None) -> None:
        if farewell is not None:
            for member in self._members:
                self._server.send(member, farewell)
        await self._server.close()

    def _handle(self, event: Event | None) -> None:
        if event is None:
            return
        session = event.member
        if isinstance(event, Joined):
            peer: _Peer = session.peer
            member = Member(peer.pod, lambda m: self._loop.call_soon_threadsafe(self._server.send, session, m))
            if peer.agent is not None:
                member.agent = RemoteAgent(member, *peer.agent)
                if member.agent.attempt != self.attempt:
                    member.agent.terminate()
            with self._lock:
                self._members[session] = member
            log.info("pod %s (%s) has joined", member.pod.name, member.pod.address)
        elif isinstance(event, Received):
            self._receive(self._members[session], event.message)
        else:
            with self._lock:
                member = self._members.pop(session)
                member.gone, member.silent = True, event.silent
                self._departed.append(member)
            log.info("pod %s %s", member.pod.name, "is silent" if event.silent else "has disconnected")

    def _receive(self, member: Member, message: Message) -> None:
        if message["say"] == "ended" and member.agent is not None and member.agent.number == message["agent"]:
            member.agent.returncode = int(message["code"])
        elif message["say"] == "leaving":
            log.info("pod %s is being deleted", member.pod.name)
            member.leaving = True

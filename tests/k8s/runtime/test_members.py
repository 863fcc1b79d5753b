"""Membership of a run: pods that are connected and send messages."""

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import pytest

from ropewalk.cluster.membership import server
from ropewalk.cluster.membership.handshake import is_answer, sign_answer
from ropewalk.cluster.membership.link import Link
from ropewalk.cluster.membership.protocol import SILENCE_SECONDS, Message, pack, unpack
from ropewalk.cluster.membership.server import RefusedError, Server
from ropewalk.cluster.run.directory import RunDir
from ropewalk.k8s.api.client import ApiAwayError, ApiError, ForbiddenError
from ropewalk.k8s.api.in_cluster import InClusterApi
from ropewalk.k8s.runtime.coordinator import verify_pod
from ropewalk.k8s.runtime.leader_terms import LeaderTerm, LeaderTerms
from ropewalk.k8s.runtime.membership import Membership
from ropewalk.k8s.runtime.pod_status import INDEX_ANNOTATION, Pod
from tests.fork_server import SERVER
from tests.patience import Patience, until

HEARTBEAT_SECONDS = 0.1
KEY = "0123456789abcdef" * 4
POD = Pod(name="a", uid="1", index=0, address="127.0.0.1")
BEAT = {"say": "beat", "got": 0}


def hello(key: str, challenge: str, nonce: str, pod: Pod, session: str = "s") -> Message:
    """Hello of a pod for its first connection."""
    message = {"say": "hello", "session": session, "begun": False, "fence": [0, 0], "got": 0, "nonce": nonce}
    return sign_answer(key, challenge, {**message, "name": pod.name, "pod": vars(pod)})


def link_to(port: int) -> Link:
    return Link("127.0.0.1", port, KEY, introduction={"name": POD.name, "pod": vars(POD)}, patience_seconds=30)


def coordinate(output: Connection) -> None:
    """Say the port, and then how each member departed."""
    logging.disable()  # whom it refuses, which the callers see
    listener = socket.create_server(("127.0.0.1", 0))
    members = Membership(listener, KEY, lambda pod, caller: pod)
    output.send(listener.getsockname()[1])
    while True:
        for member in members.departed():
            output.send("silent" if member.silent else "gone")
        time.sleep(0.01)


class Coordinator:
    """A process with nothing but members, and the words that it has said."""

    def __init__(self) -> None:
        self._output, output = Pipe(duplex=False)
        self.process = SERVER.Process(target=coordinate, args=(output,))
        self.process.start()
        output.close()
        self.port = self._output.recv()
        self.said: list[str] = []
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        with suppress(EOFError):
            while True:
                self.said.append(self._output.recv())

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        self.reader.join()
        self._output.close()


class Caller:
    """A pod that says hello and beats, until it is told to be silent."""

    def __init__(self, port: int) -> None:
        self.connection = socket.create_connection(("127.0.0.1", port))
        self.lines = self.connection.makefile("rb")
        self.hello = hello(KEY, self.hear()["nonce"], "of the caller", POD)
        self.connection.sendall(pack(self.hello))
        self.silent = threading.Event()
        self.heart = threading.Thread(target=self._beat)
        self.heart.start()

    def hear(self) -> Message:
        return unpack(self.lines.readline())

    def _beat(self) -> None:
        while not self.silent.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):
                self.connection.sendall(pack(BEAT))

    def close(self) -> None:
        self.silent.set()
        self.heart.join()
        self.lines.close()
        self.connection.close()


@pytest.fixture
def coordinator() -> Iterator[Coordinator]:
    coordinator = Coordinator()
    yield coordinator
    coordinator.close()


@pytest.fixture
def caller(coordinator: Coordinator) -> Iterator[Caller]:
    caller = Caller(coordinator.port)
    assert is_answer(KEY, "of the caller", "welcome", caller.hear())
    yield caller
    caller.close()


def test_a_pod_that_falls_silent_is_lost(coordinator: Coordinator, caller: Caller) -> None:
    caller.silent.set()
    began = time.monotonic()
    until(lambda: coordinator.said == ["silent"], Patience.SIGNAL)
    assert time.monotonic() - began >= SILENCE_SECONDS - 2 * HEARTBEAT_SECONDS


def test_a_pod_that_closes_the_connection_is_gone(coordinator: Coordinator, caller: Caller) -> None:
    caller.close()
    until(lambda: coordinator.said == ["gone"], Patience.SIGNAL)


def test_a_coordinator_that_stood_still_does_not_take_its_pods_for_silent(coordinator: Coordinator, caller: Caller) -> None:
    """Messages of the meantime are read before the clock."""
    os.kill(coordinator.process.pid, signal.SIGSTOP)
    time.sleep(1.5 * SILENCE_SECONDS)
    os.kill(coordinator.process.pid, signal.SIGCONT)
    time.sleep(0.5)
    assert coordinator.said == []


def stranger(port: int, *messages: Message) -> bytes:
    """Answer to a peer without the key after the challenge."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection, connection.makefile("rb") as lines:
        assert unpack(lines.readline())["say"] == "challenge"
        for message in messages:
            connection.sendall(pack(message))
        return bytes(lines.readline())


@pytest.mark.parametrize("uid", ["1", "2"])
def test_who_does_not_know_the_key_is_not_let_in(coordinator: Coordinator, uid: str) -> None:
    """Not even who says that it is the pod of the coordinator itself."""
    pod = Pod(name="a", uid=uid, index=0, address="127.0.0.1")
    assert stranger(coordinator.port, {"say": "hello", "pod": vars(pod)}) == b""
    assert stranger(coordinator.port, hello("another key", "", "", pod)) == b""


def test_a_hello_that_was_overheard_is_no_use(coordinator: Coordinator, caller: Caller) -> None:
    assert stranger(coordinator.port, caller.hello) == b""
    assert coordinator.said == [], "and displaces nobody"


def test_a_pod_obeys_nobody_who_does_not_know_the_key() -> None:
    with socket.create_server(("127.0.0.1", 0)) as impostor:
        link = link_to(impostor.getsockname()[1])
        connection, _ = impostor.accept()
        with connection:
            connection.sendall(pack({"say": "challenge", "nonce": "1"}) + pack({"say": "over", "code": 0}))
            heard = [message for _ in range(3) if not link.lost for message in link.listen(0.1)]
        link.close()
    assert heard == []
    assert not link.answered
    assert "before a welcome" in link.lost


def test_a_link_and_members_understand_each_other(coordinator: Coordinator) -> None:
    link = link_to(coordinator.port)
    until(lambda: link.listen(0.05) == [] and link.answered, Patience.SIGNAL)
    assert not link.lost
    link.close()


def test_a_connection_that_breaks_is_replaced_and_its_session_goes_on(coordinator: Coordinator) -> None:
    """A router that drops a connection ends no agent; the message that was under way arrives over the next one."""
    link = link_to(coordinator.port)
    until(lambda: link.listen(0.05) == [] and link.answered, Patience.SIGNAL)
    for _ in range(3):
        link._socket.shutdown(socket.SHUT_RDWR)
        link.send({"say": "leaving"})
        until(lambda: link.listen(0.05) == [] and not link._contact.channel.pending(), Patience.SIGNAL)
    assert not link.lost
    assert coordinator.said == []
    link.close()
    until(lambda: coordinator.said == ["gone"], Patience.SIGNAL)


def test_the_key_of_a_term_is_its_users_alone(tmp_path: Path) -> None:
    run = RunDir.create("toy", {"config": {}}, tmp_path)
    terms = LeaderTerms(run)
    taken = [LeaderTerm(number=n, pod="a", uid="1", index=0, address="127.0.0.1", port=1) for n in (1, 2)]
    assert terms.take(taken[0])
    first = terms.key_of(taken[0])
    assert [path.stat().st_mode & 0o777 for path in (run.path / "carriers").glob(".*.key")] == [0o600]
    assert terms.take(taken[1])
    assert terms.key_of(taken[1]) != first, "a term's key ends with it"
    assert first not in "".join(path.read_text() for path in (run.path / "carriers").glob("0*"))


class Api:
    """An API server with one pod."""

    job_name = "job"

    def __init__(self, error: ApiError | None = None) -> None:
        self.error = error

    def pod(self, name: str) -> dict[str, Any]:
        if self.error:
            raise self.error
        labels, annotations = {"batch.kubernetes.io/job-name": "job"}, {INDEX_ANNOTATION: "7"}
        return {
            "metadata": {"name": name, "uid": "u7", "labels": labels, "annotations": annotations},
            "spec": {"nodeName": "n7"},
            "status": {"phase": "Running", "podIP": "10.0.0.7", "podIPs": [{"ip": "10.0.0.7"}], "hostIP": "192.168.0.1"},
        }


LEADER = LeaderTerm(number=1, pod="p0", uid="u0", index=0, address="10.0.0.1", port=1)
AWAY, DENIED = ApiAwayError("away"), ForbiddenError("denied")


@pytest.mark.parametrize(
    ("uid", "caller", "error", "why"),
    [
        ("u0", "10.0.0.7", None, "the address of the leader's pod is 10.0.0.1"),
        ("u0", "10.0.0.7", DENIED, "the address of the leader's pod is 10.0.0.1"),
        ("u7", "192.168.0.1", None, "that pod has the address 10.0.0.7"),
        ("u7", "10.0.0.7", AWAY, "away"),
        ("u7", "10.0.0.8", DENIED, "it claims the address 10.0.0.9"),
        ("u8", "10.0.0.7", None, "there is no such pod"),
    ],
)
def test_a_caller_must_be_who_it_says_it_is(uid: str, caller: str, error: ApiError | None, why: str) -> None:
    with pytest.raises(RefusedError, match=why):
        verify_pod(Pod(name="p", uid=uid, index=3, address="10.0.0.9"), caller, LEADER, cast(InClusterApi, Api(error)))


def test_what_refused_callers_send_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    members = Server(KEY, lambda claim, caller: claim, lambda event: None)
    pod = Pod(name="n" * 50_000, uid="u", index=0, address="a" * 50_000)

    async def call() -> None:
        for number in range(server.MOST_REFUSED + 50):
            claim = hello("wrong" * 12, "nonce", "of the caller", pod, f"{number:05d}{'s' * 50_000}")
            assert await members._verify(claim, "nonce", "10.0.0.1") is None

    asyncio.run(call())
    remembered = members._refused
    assert len(remembered) == server.MOST_REFUSED == len(caplog.messages)
    assert max(len(text) for pair in remembered.items() for text in pair) <= server.LONGEST_REASON
    assert max(map(len, caplog.messages)) < 600


def test_index_and_address_are_what_kubernetes_says() -> None:
    result = verify_pod(Pod(name="p", uid="u7", index=0, address="10.0.0.66"), "10.0.0.7", LEADER, cast(InClusterApi, Api()))
    assert (result.index, result.address, result.machine) == (7, "10.0.0.7", "n7")
    leader = verify_pod(Pod(name="x", uid="u0", index=3, address="10.0.0.66"), "10.0.0.1", LEADER, cast(InClusterApi, Api()))
    assert leader == Pod(name="p0", uid="u0", index=0, address="10.0.0.1")

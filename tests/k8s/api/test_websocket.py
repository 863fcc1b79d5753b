"""Commands in pods, against a server that answers as an API server does, or breaks off."""

import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial

import httpx2
import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    Request,
)

from ropewalk.cluster.errors import BackendError
from ropewalk.k8s.api import exec as websocket
from ropewalk.k8s.api.client import ApiAwayError, ForbiddenError, Kubernetes
from ropewalk.k8s.api.exec import END, PROTOCOL, STDERR, STDIN, STDOUT
from ropewalk.k8s.api.exec_stdin import READY
from ropewalk.k8s.api.http_transport import HttpTransport
from tests.patience import HANG_SECONDS

SUCCESS = json.dumps({"status": "Success"}).encode()
FAILURE = json.dumps({"status": "Failure", "message": "command terminated with exit code 1"}).encode()


class Server:
    """One connection, from its side."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._state = WSConnection(ConnectionType.SERVER)
        self.heard: list[Event] = []

    def hear(self, kind: type[Event]) -> None:
        """Wait until an event of this kind has come, or the end."""
        while not any(isinstance(event, kind) for event in self.heard):
            data = self._connection.recv(1 << 16)
            if not data:
                return
            self._state.receive_data(data)
            self.heard += self._state.events()

    def say(self, *events: Event) -> None:
        self._connection.sendall(b"".join(self._state.send(event) for event in events))

    def accept(self) -> None:
        self.hear(Request)
        self.say(AcceptConnection(subprotocol=PROTOCOL))


@contextmanager
def serving(behave: Callable[[Server], None]) -> Iterator[Kubernetes]:
    """A cluster whose server behaves so, once."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with closing(listener.accept()[0]) as connection:
                behave(Server(connection))

        thread = threading.Thread(target=serve)
        thread.start()
        port = listener.getsockname()[1]
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client:
            yield Kubernetes(HttpTransport(client), "team")
        thread.join(10)
        assert not thread.is_alive()


def message(channel: int, content: bytes, *, finished: bool = True) -> BytesMessage:
    return BytesMessage(bytes((channel,)) + content, message_finished=finished)


class Watched(io.BytesIO):
    """Takes the output, and counts who works on it meanwhile."""

    most_threads = 0

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.most_threads = max(self.most_threads, threading.active_count())
        return super().write(data)


def test_output_comes_whole_and_in_no_other_thread() -> None:
    """A thread that still reads a connection when it is closed takes away what comes to the next file of its number."""

    def behave(server: Server) -> None:
        server.accept()
        server.say(message(STDOUT, b"one ", finished=False), Ping(), BytesMessage(b"two "))
        server.say(message(STDERR, b"careful"), message(STDOUT, bytes(300_000)), message(END, SUCCESS))
        server.hear(CloseConnection)
        kinds.extend(type(event) for event in server.heard)

    kinds: list[type[Event]] = []
    before, output = threading.active_count(), Watched()
    with serving(behave) as kube:
        kube.execute("run-0", ["cat"], None, output)
    assert output.getvalue() == b"one two " + bytes(300_000)
    assert output.most_threads <= before + 1, "the server's own alone"
    assert kinds == [Request, Pong, CloseConnection]


def test_input_is_sent_to_who_asks_for_it_and_closed() -> None:
    def behave(server: Server) -> None:
        server.accept()
        server.say(message(STDOUT, b""), message(STDOUT, READY))
        while heard[-1] != bytes((255, STDIN)):
            server.hear(BytesMessage)
            for event in server.heard:
                if isinstance(event, BytesMessage):
                    heard[-1] += event.data
                    heard.extend([b""] if event.message_finished and heard[-1] != bytes((255, STDIN)) else [])
            server.heard.clear()
        server.say(message(END, SUCCESS))

    heard, output = [b""], io.BytesIO()
    with serving(behave) as kube:
        kube.execute("run-0", ["tee"], io.BytesIO(bytes(300_000)), output)
    assert output.getvalue() == b"", "the question is no output"
    assert {piece[0] for piece in heard[:-1]} == {STDIN}
    assert b"".join(piece[1:] for piece in heard[:-1]) == bytes(300_000)


@pytest.mark.parametrize("stdin", [None, io.BytesIO(bytes(3_000_000))])
def test_a_program_that_fails_says_why(stdin: io.BytesIO | None) -> None:
    """Nothing is sent before the program reads; Kubernetes would wait for ever otherwise."""

    def behave(server: Server) -> None:
        server.accept()
        server.say(message(STDOUT, b""), message(STDERR, b"no such\nfile"), message(END, FAILURE))
        server.hear(CloseConnection)
        assert not any(isinstance(event, BytesMessage) for event in server.heard)

    with serving(behave) as kube, pytest.raises(BackendError, match=r"^cat in pod run-0: no such file$"):
        kube.execute("run-0", ["cat", "x"], stdin)


def test_who_may_not_is_told_so() -> None:
    def behave(server: Server) -> None:
        server.hear(Request)
        text = json.dumps({"message": 'pods "run-0" is forbidden: cannot create pods/exec', "reason": "Forbidden"}).encode()
        headers = [(b"content-length", str(len(text)).encode())]
        server.say(RejectConnection(status_code=403, headers=headers, has_body=True), RejectData(text))

    with serving(behave) as kube, pytest.raises(ForbiddenError, match="cannot create pods/exec"):
        kube.execute("run-0", ["cat"])


def silent(server: Server, until: threading.Event) -> None:
    server.accept()
    until.wait(HANG_SECONDS)


def test_a_server_that_falls_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "SILENCE_SECONDS", 0.1)
    given_up = threading.Event()
    with serving(partial(silent, until=given_up)) as kube:
        with pytest.raises(ApiAwayError, match="the connection to the API server"):
            kube.execute("run-0", ["cat"])
        given_up.set()


def test_one_that_answers_when_it_is_asked_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "SILENCE_SECONDS", 0.1)

    def behave(server: Server) -> None:
        server.accept()
        for _ in range(5):
            server.hear(Ping)
            server.say(*(event.response() for event in server.heard if isinstance(event, Ping)))
            server.heard.clear()
        server.say(message(END, SUCCESS))

    with serving(behave) as kube:
        kube.execute("run-0", ["sleep"])


def test_a_program_that_takes_its_input_and_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program was killed while it read, and Kubernetes waits for it."""
    monkeypatch.setattr(websocket, "SILENCE_SECONDS", 0.1)
    monkeypatch.setattr(websocket, "INPUT_SECONDS", 0.3)

    def behave(server: Server) -> None:
        server.accept()
        server.say(message(STDOUT, READY))
        while not any(isinstance(event, CloseConnection) for event in server.heard) and not given_up.is_set():
            server.hear(Ping)
            server.say(*(event.response() for event in server.heard if isinstance(event, Ping)))
            server.heard.clear()

    given_up = threading.Event()
    with serving(behave) as kube:
        with pytest.raises(ApiAwayError, match="no message for"):
            kube.execute("run-0", ["tee"], io.BytesIO(b"x"))
        given_up.set()


def test_what_is_no_websocket_is_given_up() -> None:
    def behave(server: Server) -> None:
        server.accept()
        server._connection.sendall(b"\xff" * 10)

    with serving(behave) as kube, pytest.raises(ApiAwayError, match="the connection to the API server"):
        kube.execute("run-0", ["cat"])


@pytest.mark.parametrize("polite", [True, False])
def test_an_answer_without_its_end_is_none(polite: bool) -> None:
    def behave(server: Server) -> None:
        server.accept()
        server.say(message(STDOUT, b"half"), *([CloseConnection(code=1000)] if polite else []))

    with serving(behave) as kube, pytest.raises(ApiAwayError, match="before the command ended"):
        kube.execute("run-0", ["cat"])

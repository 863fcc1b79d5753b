"""A token goes to an endpoint's own machine alone, or through a tunnel made by the command itself."""

import json
import os
import shlex
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from ropewalk.cluster.errors import BackendError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import write_json
from ropewalk.jobs.inference.scoring import reach as reach_module
from ropewalk.jobs.inference.scoring.endpoint_chat import EndpointChat
from ropewalk.jobs.inference.scoring.generate import Sampling
from ropewalk.jobs.inference.scoring.reach import reach
from ropewalk.jobs.runs.show.endpoint import Endpoint
from ropewalk.jobs.serving.feedback.review.serve import open_review
from ropewalk.jobs.serving.serve.files import ServingFiles
from ropewalk.jobs.serving.serve.view import ServeView

SAMPLING = Sampling(max_new_tokens=4, temperature=0.0, top_p=1.0)
HERE = os.uname().nodename
# forwards connections as ssh -L does: python -c FORWARD LOCAL_PORT PORT
FORWARD = """
import socket, sys, threading
def pass_on(source, target):
    while data := source.recv(65536):
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listener:
    while True:
        client, _ = listener.accept()
        server = socket.create_connection(("127.0.0.1", int(sys.argv[2])))
        threading.Thread(target=pass_on, args=(client, server)).start()
        threading.Thread(target=pass_on, args=(server, client)).start()
"""


class Listener(ThreadingHTTPServer):
    """A program that answers as an endpoint does, and keeps what it was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.tokens: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._send({"status": "ok", "replicas": {}})

    def do_POST(self) -> None:
        assert isinstance(self.server, Listener)
        self.server.tokens.append(self.headers["Authorization"])
        self.rfile.read(int(self.headers["Content-Length"]))
        self._send({"choices": [{"message": {"content": "hello"}}]})

    def _send(self, value: Any) -> None:
        raw = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    monkeypatch.setenv("SERVE_TOKEN", "the-token")
    with Listener() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server
        server.shutdown()


def test_a_loopback_address_of_another_machine_gets_no_token(listener: Listener) -> None:
    far = Endpoint(address=listener.url, node="n7", variable="SERVE_TOKEN")
    with pytest.raises(BackendError, match=r"127.0.0.1:\d+ on n7 cannot be reached from this machine; run the command on n7"):
        EndpointChat(far, SAMPLING).answer("a secret question")
    assert listener.tokens == []
    assert EndpointChat(Endpoint(address=listener.url, node=HERE, variable="SERVE_TOKEN"), SAMPLING).answer("hi") == "hello"
    assert listener.tokens == ["Bearer the-token"]


def test_a_chat_makes_a_tunnel_of_its_own_and_ends_it(listener: Listener) -> None:
    with Listener() as stranger:  # listens here at the port that the endpoint has there
        far = Endpoint(
            address=stranger.url,
            node="n7",
            variable="SERVE_TOKEN",
            tunnel=lambda port: shlex.join([sys.executable, "-c", FORWARD, str(port), str(listener.server_port)]),
        )
        before = set(psutil.Process().children())
        chat = EndpointChat(far, SAMPLING)
        assert [chat.answer("hi"), chat.answer("and")] == ["hello", "hello"]
        assert len(set(psutil.Process().children()) - before) == 1
        chat.close()
        assert set(psutil.Process().children()) == before
        assert listener.tokens == ["Bearer the-token"] * 2
        assert stranger.tokens == []


def test_a_tunnel_that_is_none_is_named(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    for command, cause in (("sh -c 'echo no route >&2'", "no route"), ("no-such-program", "No such file")):
        far = Endpoint(address=listener.url, node="n7", tunnel=lambda port, command=command: command)  # type: ignore[misc]
        with pytest.raises(BackendError, match=f"the tunnel cannot be made: .*: {cause}"), reach(far):
            pass
    # another user was faster to take the port: whoever listens there is no child of the command
    monkeypatch.setattr(reach_module, "free_port", lambda _: listener.server_port)
    monkeypatch.setattr(reach_module, "TUNNEL_SECONDS", 0.5)
    with (
        pytest.raises(BackendError, match="it does not listen after"),
        reach(Endpoint(address=listener.url, node="n7", tunnel=lambda _: "sleep 60")),
    ):
        pass


def test_a_named_machine_is_asked_and_else_its_tunnel() -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        closed = f"http://{HERE}.invalid:{nobody.getsockname()[1]}"
    with pytest.raises(BackendError, match="cannot be reached"), reach(Endpoint(address=closed, node="n7")):
        pass


def test_all_interfaces_of_another_node_are_named_by_the_node(tmp_path: Path, listener: Listener) -> None:
    config = {"host": "0.0.0.0", "auth": {"variable": "SERVE_TOKEN"}}
    run = RunDir.create("serve", {"job": "serve", "cluster": "local", "config": config, "resources": {"nodes": 1}}, tmp_path)
    files = ServingFiles(run)
    files.folder.mkdir()
    for node, expected in (("n7", f"http://n7:{listener.server_port}"), (HERE, listener.url)):
        write_json(files.address, {"address": listener.url, "port": listener.server_port, "node": node, "attempt": 1})
        endpoint = ServeView(run).endpoint()
        assert endpoint is not None
        assert endpoint.address == expected


def test_a_review_sends_nothing_to_a_stranger(tmp_path: Path, listener: Listener) -> None:
    record = {"job": "serve", "cluster": "local", "config": {"auth": {"variable": "SERVE_TOKEN"}}, "resources": {"nodes": 1}}
    run = RunDir.create("serve", record, tmp_path)
    (run.path / "feedback/exchanges").mkdir(parents=True)
    ServingFiles(run).folder.mkdir()
    write_json(ServingFiles(run).address, {"address": listener.url, "port": listener.server_port, "node": "n7", "attempt": 1})
    review = open_review(str(run.path), reviewer="ann", ask_at=None, sample=True, out=None, port=0)
    with pytest.raises(BackendError, match="run the command on n7"), review:
        pass
    assert listener.tokens == []
    with open_review(str(run.path), reviewer="ann", ask_at=None, sample=False, out=None, port=0) as session:
        assert session.review.sampler is None

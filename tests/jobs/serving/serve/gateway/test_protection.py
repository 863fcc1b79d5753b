"""Clients that want to stop, fill up or read an endpoint: each gets its refusal, and the others their answers."""

import json
import os
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.inference.scoring.endpoint_chat import EndpointChat
from ropewalk.jobs.inference.scoring.generate import Sampling
from ropewalk.jobs.runs.show.endpoint import Endpoint as Reached
from ropewalk.jobs.runs.show.endpoint import read_tokens
from ropewalk.jobs.serving.feedback.read import exchanges
from tests.jobs.serving.serve.gateway.endpoint import Endpoint, FakeEngine, chat, get, post, texts
from tests.patience import Patience, slowness, until

CHAT = "/v1/chat/completions"
TOKEN = {"authorization": "Bearer s3cret"}
ENVIRONMENT = {"GATEWAY_TEST_TOKEN": "s3cret"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """An endpoint that requires a token."""
    folder = tmp_path_factory.mktemp("guarded")
    endpoint = Endpoint(
        folder,
        [FakeEngine("--token", "0.001", slots=16)],
        environment=ENVIRONMENT,
        auth={"variable": "GATEWAY_TEST_TOKEN"},
        body_seconds=0.5,
        idle_seconds=1.5,
        stalled_seconds=1.0,
        peer_connections=200,
        max_open_bytes=2**22,
    )
    yield endpoint
    endpoint.close()


def _post(endpoint: Endpoint, **keys: Any) -> httpx.Response:
    return post(endpoint.url + CHAT, json=chat("hello", max_tokens=2, **keys), headers=TOKEN)


def _connect(endpoint: Endpoint, host: str = "") -> socket.socket:
    return socket.create_connection(
        ("127.0.0.1", endpoint.port), timeout=60 * slowness(), source_address=(host, 0) if host else None
    )


def _head(*headers: str) -> bytes:
    return "\r\n".join([f"POST {CHAT} HTTP/1.1", "Host: x", "Content-Type: application/json", *headers, "", ""]).encode()


def test_without_a_token_a_body_is_not_read(guarded: Endpoint) -> None:
    before = psutil.Process(guarded.live()).memory_info().rss
    sent = 0
    with _connect(guarded) as client:
        client.sendall(_head("Content-Length: 4000000000"))
        client.settimeout(0.01)
        answer = b""
        deadline = time.monotonic() + 30 * slowness()
        while time.monotonic() < deadline:
            try:
                sent += client.send(bytes(2**16))
            except TimeoutError:
                pass
            except ConnectionError:
                break
            try:
                answer += (part := client.recv(4096))
                if not part:
                    break
            except (TimeoutError, ConnectionError):
                pass
    assert b" 401 " in answer.partition(b"\r\n")[0] + b" "
    assert psutil.Process(guarded.live()).memory_info().rss - before < 20 * 2**20
    assert time.monotonic() < deadline, "the connection is closed"


UPLOADER = """
import os, socket, sys, time
os.nice(19)
address, bodies = ("127.0.0.1", int(sys.argv[1])), []
for header, body in (
    ("Content-Length: 30000000", bytes(2**20)),
    ("Transfer-Encoding: chunked", b"1\\r\\nx\\r\\n" * 10000),
    ("Transfer-Encoding: chunked", b"2\\r\\n\\r\\n\\r\\n" * 10000),
):
    bodies.append((f"POST /v1/chat/completions HTTP/1.1\\r\\nHost: x\\r\\n{header}\\r\\n\\r\\n".encode(), body))
while True:
    for head, body in bodies:
        try:
            with socket.create_connection(address, timeout=60) as client:
                client.sendall(head)
                for _ in range(30):
                    client.sendall(body)
        except OSError:
            pass
"""


def test_uploads_without_a_token_disturb_nobody(guarded: Endpoint) -> None:
    """Large bodies, bodies of one-byte chunks, and bodies whose chunks look like ends, again and again."""
    uploaders = [subprocess.Popen([sys.executable, "-S", "-c", UPLOADER, str(guarded.port)]) for _ in range(12)]
    try:
        time.sleep(0.5)
        answers = [_post(guarded) for _ in range(20)]
    finally:
        for uploader in uploaders:
            uploader.kill()
            uploader.wait()
    assert [answer.status_code for answer in answers] == [200] * 20


def test_clients_that_are_gone_before_they_are_refused_leave_no_error(guarded: Endpoint) -> None:
    gateway = psutil.Process(guarded.live())
    body = json.dumps(chat("hello", max_tokens=2)).encode()
    whole = _head("Authorization: Bearer s3cret", f"Content-Length: {len(body)}") + body
    gateway.suspend()  # so that it reads a request and its client's end one after the other
    for request in 20 * [_head("Transfer-Encoding: chunked") + b"5\r\nabcde", whole]:
        with _connect(guarded) as client:
            client.sendall(request)
    gateway.resume()
    assert _post(guarded).status_code == 200
    assert "Traceback" not in guarded.log()


def test_a_body_that_does_not_arrive_is_refused(guarded: Endpoint) -> None:
    with _connect(guarded) as client:
        client.sendall(_head("Content-Length: 100", "Authorization: Bearer s3cret") + b"{")
        assert client.recv(4096).startswith(b"HTTP/1.1 408")


def test_a_head_that_does_not_arrive_ends_its_connection(guarded: Endpoint) -> None:
    with _connect(guarded) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost")
        assert client.recv(4096) == b""


def test_bodies_are_bounded_in_all(guarded: Endpoint) -> None:
    clients = [_connect(guarded) for _ in range(8)]
    statuses = []
    for client in clients:
        client.sendall(_head("Content-Length: 1000000", "Authorization: Bearer s3cret") + bytes(900_000))
    for client in clients:
        statuses.append(int(client.recv(4096).split()[1]))
        client.close()
    assert set(statuses) == {408, 503}
    assert _post(guarded).status_code == 200


def test_one_address_cannot_take_all_connections(guarded: Endpoint) -> None:
    clients = [_connect(guarded) for _ in range(250)]
    try:
        until(lambda: sum(_closed(client) for client in clients) >= 50, Patience.SIGNAL)
        with _connect(guarded, "127.0.0.2") as other:
            other.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert other.recv(4096).startswith(b"HTTP/1.1 200")
    finally:
        for client in clients:
            client.close()
    until(lambda: get(guarded.url + "/healthz").status_code == 200, Patience.SIGNAL)


def _closed(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_a_client_that_receives_nothing_is_disconnected(guarded: Endpoint) -> None:
    body = json.dumps(chat("never read", max_tokens=200_000)).encode()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect(("127.0.0.1", guarded.port))
        client.sendall(_head(f"Content-Length: {len(body)}", "Authorization: Bearer s3cret") + body)
        engine = guarded.engines[0]
        until(lambda: engine.stats()["running"] == 1, Patience.SIGNAL)
        until(lambda: engine.stats()["running"] == 0, Patience.STEP)


def test_ids_of_requests_cannot_be_guessed(guarded: Endpoint) -> None:
    ids = {_post(guarded).headers["x-request-id"] for _ in range(5)}
    assert len(ids) == 5
    assert all(re.fullmatch(r"req-[0-9a-f]{32}", number) for number in ids)
    assert len({number[:12] for number in ids}) == 5


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "127.0.0.1:8000"}, 200),
        ({"host": "localhost"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "serve-x.team.svc.cluster.local:8000"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "evil.example:8000"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"content-type": "text/plain"}, 415),
    ],
)
def test_pages_of_other_sites_are_refused_where_no_token_is_needed(
    endpoint: Endpoint, headers: dict[str, str], status: int
) -> None:
    body = json.dumps(chat("from a page", max_tokens=1))
    answer = post(endpoint.url + CHAT, content=body, headers={"content-type": "application/json", **headers})
    assert answer.status_code == status


def test_clients_have_tokens_by_name_and_the_file_is_read_again(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("ann: first-token\nbob: second-token\n")
    endpoint = Endpoint(
        tmp_path, [FakeEngine()], auth={"file": str(tokens)}, feedback_folder=tmp_path / "feedback", capture={"mask": []}
    )

    def status(token: str) -> int:
        headers = {"authorization": f"Bearer {token}"}
        return post(endpoint.url + CHAT, json=chat("who", max_tokens=1), headers=headers).status_code

    try:
        assert f"chmod 600 {tokens}" in endpoint.log()
        assert [status(token) for token in ("first-token", "second-token", "third-token", "ann")] == [200, 200, 401, 401]
        tokens.write_text("ann: third-token\n")
        os.utime(tokens, ns=(0, 0))
        until(lambda: status("third-token") == 200, Patience.SIGNAL)
        assert status("second-token") == 401
    finally:
        endpoint.close()
    assert sorted(str(exchange.client) for exchange in exchanges(tmp_path, None, None)) == ["ann", "ann", "bob"]


@pytest.mark.parametrize("text", ["", "a: 1\na: 2\n", "a: 1\nb: 1\n", "a: 1\nplain\n"])
def test_a_file_of_tokens_is_checked(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(ConfigError, match="tokens"):
        read_tokens(tmp_path / "tokens")


def test_https(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    endpoint = Endpoint(tmp_path, [FakeEngine()], tls={"cert": str(cert), "key": str(key)})
    try:
        context = ssl.create_default_context(cafile=str(cert))
        answer = post(endpoint.url + CHAT, json=chat("secret", max_tokens=3), verify=context)
        assert endpoint.url.startswith("https://")
        assert texts(answer.content).count("w") == 3
        reached = Reached(address=endpoint.url, node=os.uname().nodename, certificate=str(cert))
        assert EndpointChat(reached, Sampling(max_new_tokens=2, temperature=0.0, top_p=1.0)).answer("hello").count("w") == 2
    finally:
        endpoint.close()


def test_a_full_disk_costs_the_load_file_and_nothing_else(tmp_path: Path) -> None:
    endpoint = Endpoint(tmp_path, [FakeEngine()])
    try:
        live = endpoint.live()
        endpoint.load_file.unlink(missing_ok=True)
        endpoint.load_file.mkdir()  # it cannot be replaced by a file
        until(lambda: "not written" in endpoint.log(), Patience.SIGNAL)
        answer = post(endpoint.url + CHAT, json=chat("full", max_tokens=30))
        assert texts(answer.content).count("w") == 30
        assert endpoint.live() == live
        assert endpoint.log().count("not written") == 1, "it says so once"
        endpoint.load_file.rmdir()
        until(endpoint.load_file.is_file, Patience.SIGNAL)
    finally:
        endpoint.close()


@pytest.mark.soak("200 MB of bodies; test_capture.py has a stuck writer, what waits for it, and its bound")
def test_answers_go_on_while_nothing_can_be_captured(tmp_path: Path) -> None:
    endpoint = Endpoint(tmp_path, [FakeEngine(slots=16)], feedback_folder=tmp_path / "feedback", capture={"mask": []})
    try:
        children = until(lambda: psutil.Process(endpoint.live()).children(), Patience.START, endpoint.log)
        children[0].suspend()  # a disk that stands still
        gateway = psutil.Process(endpoint.live())
        before = gateway.memory_info().rss  # the gateway of a test is a fork with the imports of all tests
        body = chat("large", max_tokens=1, metadata={"padding": "x" * 1_000_000})
        answers = [post(endpoint.url + CHAT, json=body) for _ in range(200)]
        assert [answer.status_code for answer in answers] == [200] * 200
        dropped = re.search(r"ropewalk_capture_dropped ([\d.]+)", get(endpoint.url + "/metrics").text)
        assert dropped is not None
        assert float(dropped[1]) > 0
        assert gateway.memory_info().rss - before < 128 * 2**20
        children[0].resume()
    finally:
        endpoint.close()

"""An endpoint in peace: the bytes of the engine, and a clear answer to whatever clients do."""

import json
import socket
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.serving.serve.gateways import listen
from ropewalk.jobs.serving.serve.routes import Alias, Version
from tests.jobs.serving.serve.gateway.endpoint import (
    HTTP,
    VERSION,
    Endpoint,
    FakeEngine,
    chat,
    open_stream,
    post,
    start_gateways,
    texts,
)
from tests.patience import Patience, until

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
JSON = "Content-Type: application/json"


def _raw(endpoint: Endpoint, data: bytes, until_seen: bytes = b"") -> bytes:
    """Send bytes and return the answer, until the connection ends or `until_seen` appears."""
    result = b""
    with socket.create_connection(("127.0.0.1", endpoint.port), timeout=30) as client:
        client.sendall(data)
        while (not until_seen or until_seen not in result) and (part := client.recv(65536)):
            result += part
    return result


def _post(path: str, body: dict[str, Any], *headers: str) -> bytes:
    raw = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: x", JSON, f"Content-Length: {len(raw)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + raw


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat("hello", max_tokens=4, stream_options={"include_usage": True})),
        (CHAT, chat("hello", max_tokens=4, return_token_ids=True)),
        (CHAT, chat("hello", max_tokens=4, stream=False)),
        (COMPLETIONS, {"model": VERSION, "prompt": "hello é", "max_tokens": 4, "temperature": 0, "stream": True}),
    ],
    ids=["stream", "token ids", "whole", "completions"],
)
def test_bytes_are_those_of_the_engine(endpoint: Endpoint, path: str, body: dict[str, Any]) -> None:
    got = HTTP.post(endpoint.url + path, json=body)
    bare = [HTTP.post(f"http://127.0.0.1:{engine.port}{path}", json=body) for engine in endpoint.engines]
    assert got.content in [response.content for response in bare]
    assert got.headers["content-type"] == bare[0].headers["content-type"]
    assert got.headers["x-request-id"].startswith("req-")
    assert got.headers["x-ropewalk-version"] == VERSION


def test_pages(endpoint: Endpoint) -> None:
    with httpx.Client(base_url=endpoint.url, verify=False) as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/readyz").json() == {"status": "ready"}
        assert [response["id"] for response in client.get("/v1/models").json()["data"]] == ["production", VERSION]
        assert client.get(f"/v1/models/{VERSION}").json()["id"] == VERSION
        assert client.head("/healthz").status_code == 200
        client.post(CHAT, json=chat("counted", max_tokens=3))
        page = client.get("/metrics").text
        assert f'ropewalk_requests_total{{outcome="completed",status="200",version="{VERSION}"}}' in page
        assert 'ropewalk_first_token_seconds_bucket{le="60.0",part="engine"}' in page
    loaded = until(lambda: _load(endpoint), Patience.SIGNAL)
    assert set(loaded["replicas"]) == {engine.replica.id for engine in endpoint.engines}
    assert loaded["versions"][VERSION]["requests"] >= 1


def _load(endpoint: Endpoint) -> Any:
    result = json.loads(endpoint.load_file.read_bytes()) if endpoint.load_file.exists() else {}
    return result if result.get("versions", {}).get(VERSION, {}).get("requests") else None


@pytest.mark.parametrize(
    ("requested", "body", "status", "code"),
    [
        (("POST", CHAT), b"{", 400, "invalid_json"),
        (("POST", CHAT), b'{"messages": [{"role": "user", "content": "\xff"}]}', 400, "invalid_json"),
        (("POST", CHAT), b'{"messages": [{"role": "user"}], "model": "other"}', 404, "model_not_found"),
        (("POST", CHAT), b"x" * 200_000, 413, "request_too_large"),
        (("GET", CHAT), b"", 405, "method_not_allowed"),
        (("POST", "/v1/nothing"), b"{}", 404, "not_found"),
        (("GET", "/v1/models/other"), b"", 404, "model_not_found"),
        (("POST", COMPLETIONS), b"{}", 400, "missing_required_parameter"),
        (("POST", "/v1/feedback"), b"{}", 404, "not_found"),
    ],
)
def test_errors_have_openais_form(endpoint: Endpoint, requested: tuple[str, str], body: bytes, status: int, code: str) -> None:
    got = HTTP.request(requested[0], endpoint.url + requested[1], content=body, headers={"content-type": "application/json"})
    assert (got.status_code, got.json()["error"]["code"]) == (status, code)
    assert set(got.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01", 400),
        (b"GET /healthz HTTP/1.1\r\nHost x\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.0\r\n\r\n", 200),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 200),
        (f"POST /v1/completions HTTP/1.1\r\nHost: x\r\n{JSON}\r\nContent-Length: 999999999\r\n\r\n".encode(), 413),
    ],
)
def test_raw_bytes_get_an_answer_and_an_end(endpoint: Endpoint, data: bytes, status: int) -> None:
    assert int(_raw(endpoint, data).split()[1]) == status


@pytest.mark.parametrize("path", ["/nothing", "/v1/models/other", CHAT])
def test_an_error_to_a_head_is_a_head(endpoint: Endpoint, path: str) -> None:
    request = f"HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    head, _, rest = _raw(endpoint, request.encode()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 40")
    assert rest.startswith(b"HTTP/1.1 200")


def test_requests_behind_each_other_in_pieces_and_after_a_question(endpoint: Endpoint) -> None:
    body = {"prompt": "p", "max_tokens": 2, "temperature": 0}
    twice = _raw(endpoint, _post(COMPLETIONS, body) + _post(COMPLETIONS, body, "Connection: close"))
    assert twice.count(b"HTTP/1.1 200") == 2
    raw = json.dumps(body).encode()
    pieces = b"".join(b"1\r\n%c\r\n" % response for response in raw)
    lines = [
        "POST /v1/completions HTTP/1.1",
        "Host: x",
        JSON,
        "Transfer-Encoding: chunked",
        "Expect: 100-continue",
        "Connection: close",
    ]
    with socket.create_connection(("127.0.0.1", endpoint.port), timeout=30) as client:
        client.sendall("\r\n".join([*lines, "", ""]).encode())
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(pieces + b"0\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200 OK")
    old = _raw(endpoint, _post(COMPLETIONS, {**body, "stream": True}).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
    assert b"chunked" not in old
    assert old.endswith(b"data: [DONE]\n\n")


def test_a_client_that_hangs_up_frees_its_slot(endpoint: Endpoint) -> None:
    cancelled = sum(engine.stats()["cancelled"] for engine in endpoint.engines)
    with (
        httpx.Client(verify=False) as client,
        client.stream("POST", endpoint.url + CHAT, json=chat("long", max_tokens=100_000)) as stream,
    ):
        parts = stream.iter_raw()  # kept: its end would be that of the stream
        next(parts)
        assert sum(engine.stats()["running"] for engine in endpoint.engines) == 1
    until(lambda: sum(engine.stats()["cancelled"] for engine in endpoint.engines) == cancelled + 1, Patience.SIGNAL)
    assert sum(engine.stats()["running"] for engine in endpoint.engines) == 0


def test_a_slow_reader_holds_up_nobody(endpoint: Endpoint) -> None:
    with socket.create_connection(("127.0.0.1", endpoint.port)) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(_post(CHAT, chat("slow", max_tokens=150)))
        assert slow.recv(15) == b"HTTP/1.1 200 OK"
        assert texts(HTTP.post(endpoint.url + CHAT, json=chat("fast", max_tokens=20)).content).count("w") == 20
        until(lambda: sum(engine.stats()["running"] for engine in endpoint.engines) == 0, Patience.SIGNAL)
        got = b""
        while not got.endswith(b"0\r\n\r\n"):
            got += slow.recv(1000)
        assert got.count(b'"content":" w') == 150


def test_above_capacity_requests_wait_and_too_many_are_refused(tmp_path: Path) -> None:
    endpoint = Endpoint(tmp_path, [FakeEngine("--token", "0.005")], queue_requests=20)
    got: list[httpx.Response] = []

    def ask(number: int) -> None:
        got.append(post(endpoint.url + CHAT, json=chat(f"many {number}", max_tokens=40)))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(60)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        endpoint.close()
    refused = [response for response in got if response.status_code == 429]
    assert len(got) == 60
    assert all(
        response.status_code == 200 and texts(response.content).count("w") == 40 for response in got if response not in refused
    )
    assert 24 <= len(got) - len(refused) < 60  # slots, and those that wait
    assert all(
        int(response.headers["retry-after"]) >= 1 and response.json()["error"]["code"] == "overloaded" for response in refused
    )


def test_a_request_that_waits_too_long_is_refused(tmp_path: Path) -> None:
    endpoint = Endpoint(tmp_path, [FakeEngine("--token", "0.005", slots=1)], queue_seconds=0.3)
    try:
        with open_stream("POST", endpoint.url + CHAT, json=chat("long", max_tokens=100_000)) as stream:
            parts = stream.iter_raw()
            next(parts)
            refused = post(endpoint.url + CHAT, json=chat("second", max_tokens=1))
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
    finally:
        endpoint.close()


def test_requests_wait_while_the_first_version_loads(tmp_path: Path) -> None:
    engine = FakeEngine()
    endpoint = Endpoint(tmp_path, [engine], publish=False)
    got: list[httpx.Response] = []

    def ask() -> None:
        got.append(post(endpoint.url + CHAT, json=chat("early", max_tokens=2, model="production")))

    threads = [threading.Thread(target=ask) for _ in range(12)]
    try:
        assert HTTP.get(endpoint.url + "/healthz").status_code == 200
        assert HTTP.get(endpoint.url + "/readyz").status_code == 503
        for thread in threads:
            thread.start()
        until(lambda: "ropewalk_connections" in HTTP.get(endpoint.url + "/metrics").text, Patience.SIGNAL)
        endpoint.publish()
        for thread in threads:
            thread.join()
        assert [response.status_code for response in got] == [200] * 12
        assert HTTP.get(endpoint.url + "/readyz").status_code == 200
    finally:
        endpoint.close()


def test_a_deadline_ends_a_request(endpoint: Endpoint) -> None:
    late = HTTP.post(endpoint.url + CHAT, json=chat("late", max_tokens=1000, stream=False), headers={"x-request-timeout": "0.2"})
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
    cut = HTTP.post(endpoint.url + CHAT, json=chat("late", max_tokens=1000, timeout=0.2)).content
    assert b'"code":"deadline_exceeded"' in cut.split(b"\n\n")[-2]
    until(lambda: sum(engine.stats()["running"] for engine in endpoint.engines) == 0, Patience.SIGNAL)


def test_many_connections(endpoint: Endpoint) -> None:
    clients = [socket.create_connection(("127.0.0.1", endpoint.port)) for _ in range(400)]
    for client in clients:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert all(client.recv(12) == b"HTTP/1.1 200" for client in clients)
    for client in clients:
        client.close()


def test_names_lead_to_versions_and_a_server_that_leaves_says_so(tmp_path: Path) -> None:
    engines = [FakeEngine(), FakeEngine()]
    endpoint = Endpoint(tmp_path, engines, auth={"variable": "GATEWAY_TEST_TOKEN"}, environment={"GATEWAY_TEST_TOKEN": "s3cret"})
    try:
        versions = {
            "old": Version(replicas=(engines[0].replica,)),
            "new": Version(replicas=(engines[1].replica,), draining=False),
        }
        aliases = {"production": Alias(stable="old", canary="new", share=0.5)}
        endpoint.publish(versions=versions, aliases=aliases)
        with httpx.Client(base_url=endpoint.url, verify=False, headers={"authorization": "Bearer s3cret"}) as client:
            until(lambda: len(client.get("/v1/models").json()["data"]) == 3, Patience.SIGNAL)
            assert HTTP.get(endpoint.url + "/v1/models").status_code == 401
            assert HTTP.get(endpoint.url + "/v1/models", headers={"authorization": "Bearer s3cres"}).status_code == 401
            assert HTTP.get(endpoint.url + "/healthz").status_code == 200
            met = [
                client.post(CHAT, json=chat(f"c{k}", max_tokens=1, model="production")).headers["x-ropewalk-version"]
                for k in range(20)
            ]
            assert set(met) == {"old", "new"}
            assert met == [
                client.post(CHAT, json=chat(f"c{k}", max_tokens=1, model="production")).headers["x-ropewalk-version"]
                for k in range(20)
            ]
            endpoint.publish(versions={**versions, "new": Version(draining=True)}, aliases={"production": Alias(stable="old")})
            until(lambda: client.post(CHAT, json={**chat("x"), "model": "new"}).status_code == 404, Patience.SIGNAL)
            endpoint.publish(versions=versions, aliases=aliases, accepting=False, retry_after=7)
            refused = until(
                lambda: (response := client.post(CHAT, json=chat("x", model="production"))).status_code == 503 and response,
                Patience.SIGNAL,
            )
            assert refused.headers["retry-after"] == "7"
    finally:
        endpoint.close()


def test_mistakes_end_with_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match=r"host 127.0.0.1, port"):
        listen("127.0.0.1", taken.getsockname()[1])
    gateways = start_gateways(tmp_path, auth={"variable": "NOT_SET_ANYWHERE"})
    try:
        with pytest.raises(ConfigError, match=r"^auth: the environment variable NOT_SET_ANYWHERE is empty"):
            until(gateways.look, Patience.START)
    finally:
        gateways.end(0)

"""Replicas and gateways are killed at any moment: clients see one stream, with the text of an undisturbed one."""

import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from ropewalk.jobs.serving.feedback.read import exchanges
from ropewalk.jobs.serving.feedback.records import ratings_store
from ropewalk.jobs.serving.serve.routes import Alias
from tests.jobs.serving.serve.gateway.endpoint import HTTP, VERSION, Endpoint, FakeEngine, chat, texts
from tests.patience import Patience, until

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
USAGE = {"stream_options": {"include_usage": True}}


SOAK = pytest.mark.soak("make test runs engines of this program, by continue_from")


def _writer(gateway: int) -> psutil.Process | None:
    """The process that writes down what a gateway hands over."""
    children = psutil.Process(gateway).children()
    return next((child for child in children if "ropewalk.jobs.serving.feedback.writer" in child.cmdline()), None)


@pytest.fixture(
    scope="module",
    params=["continue_from", pytest.param("token_ids", marks=SOAK), pytest.param("replay", marks=SOAK)],
)
def fragile(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """Two engines that are there to be killed, for each way in which engines can continue."""
    name = {"continue_from": "llamacpp", "token_ids": "vllm", "replay": "other"}[request.param]
    folder = tmp_path_factory.mktemp("fragile")
    engines = [FakeEngine("--way", request.param, "--hold", str(folder / "hold"), engine=name) for _ in range(2)]
    endpoint = Endpoint(folder, engines)
    yield endpoint
    endpoint.close()


def _undisturbed(endpoint: Endpoint, path: str, body: dict[str, Any]) -> bytes:
    return HTTP.post(f"http://127.0.0.1:{endpoint.engines[0].port}{path}", json=body, timeout=60).content


def _disturbed(endpoint: Endpoint, path: str, body: dict[str, Any], moments: dict[int, Callable[[], None]]) -> bytes:
    """A stream during which something happens whenever so many tokens have come; the engine stands still there."""
    hold = endpoint.folder / "hold"
    hold.write_text("\n".join(map(str, moments)))
    result = b""
    left = dict(moments)
    with HTTP.stream("POST", endpoint.url + path, json=body) as stream:
        assert stream.status_code == 200
        for part in stream.iter_raw():
            result += part
            if result.count(b" w") in left:
                at = result.count(b" w")
                until(lambda at=at: str(at) not in hold.read_text().split(), Patience.SIGNAL)
                left.pop(at)()
    assert not left
    return result


def _kill_busy(endpoint: Endpoint) -> None:
    """Kill the engine that answers, and start it again at the same place."""
    busy = until(lambda: [engine for engine in endpoint.engines if engine.stats()["running"]], Patience.SIGNAL)
    busy[0].restart()


def _plain(stream: bytes) -> list[Any]:
    """The events of a stream, without what two answers never share."""
    assert stream.endswith(b"data: [DONE]\n\n")
    events = [json.loads(line[6:]) for line in stream.split(b"\n") if line.startswith(b"data: {")]
    assert len({(event["id"], event["created"]) for event in events}) == 1
    return [{key: value for key, value in event.items() if key not in ("id", "created")} for event in events]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_replica_is_killed_and_the_stream_goes_on(fragile: Endpoint, path: str) -> None:
    body = chat("killed é", max_tokens=40, **USAGE)
    if path == COMPLETIONS:
        body["prompt"] = body.pop("messages")[0]["content"]
    expected = _plain(_undisturbed(fragile, path, body))
    moments = {1: lambda: _kill_busy(fragile), 17: lambda: _kill_busy(fragile), 30: fragile.kill_gateway}
    assert _plain(_disturbed(fragile, path, body, moments)) == expected


def test_a_sampled_answer_goes_on_as_it_would_have(fragile: Endpoint) -> None:
    body = chat("sampled", max_tokens=30, temperature=0.8, seed=5)
    expected = _plain(_undisturbed(fragile, CHAT, body))
    assert _plain(_disturbed(fragile, CHAT, body, {10: lambda: _kill_busy(fragile)})) == expected


def test_an_answer_that_is_no_stream_is_asked_again(endpoint: Endpoint) -> None:
    body = chat("whole", max_tokens=60, stream=False)
    expected = json.loads(_undisturbed(endpoint, CHAT, body))["choices"]
    hold = endpoint.folder / "hold"
    hold.write_text("20\n40")
    got: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: got.append(HTTP.post(endpoint.url + CHAT, json=body, timeout=60)))
    thread.start()
    until(lambda: hold.read_text() == "40", Patience.SIGNAL)
    _kill_busy(endpoint)
    until(lambda: hold.read_text() == "", Patience.SIGNAL)
    endpoint.kill_gateway()
    thread.join()
    assert got[0].status_code == 200
    assert got[0].json()["choices"] == expected


def test_all_replicas_are_away_for_a_while(endpoint: Endpoint) -> None:
    body = chat("away", max_tokens=30)
    expected = texts(_undisturbed(endpoint, CHAT, body))
    back: list[threading.Timer] = []

    def away() -> None:
        for engine in endpoint.engines:
            engine.kill()
            back.append(threading.Timer(0.5, engine.start, (engine.port,)))
            back[-1].start()

    assert texts(_disturbed(endpoint, CHAT, body, {5: away})) == expected
    for timer in back:
        timer.join()


def test_a_gateway_is_killed_while_a_request_arrives_and_between_requests(endpoint: Endpoint) -> None:
    body = json.dumps({"prompt": "cut", "max_tokens": 3, "temperature": 0, "stream": True}).encode()
    raw = b"POST /v1/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    results = []
    with socket.create_connection(("127.0.0.1", endpoint.port), timeout=60) as client:
        for cut in (7, len(raw) - len(body) + 9, len(raw) - 1, len(raw)):
            client.sendall(raw[:cut])
            endpoint.kill_gateway()
            client.sendall(raw[cut:])
            got = b""
            while b"\r\n0\r\n\r\n" not in got:
                part = client.recv(65536)
                assert part, endpoint.said()
                got += part
            results.append(texts(got.partition(b"\r\n\r\n")[2].replace(b"\r\n", b"\n")))
    assert len(results) == 4
    assert set(results) == {texts(_undisturbed(endpoint, COMPLETIONS, json.loads(body)))}


def test_a_slow_client_gets_every_byte_once_though_gateways_die(endpoint: Endpoint) -> None:
    body = chat("slow and long", max_tokens=400)
    expected = texts(_undisturbed(endpoint, CHAT, body))
    raw = json.dumps(body).encode()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect(("127.0.0.1", endpoint.port))
        client.settimeout(60)
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(raw), raw)
        )
        got = b""
        kills = iter((5_000, 20_000, 40_000))
        at = next(kills)
        while part := client.recv(1024):
            got += part
            if len(got) > at:
                endpoint.kill_gateway()
                at = next(kills, 10**9)
    lines = got.partition(b"\r\n\r\n")[2].split(b"\r\n")
    assert lines[-3:] == [b"0", b"", b""]
    assert all(int(size, 16) == len(data) for size, data in zip(lines[::2], lines[1::2], strict=False) if size)
    assert texts(b"".join(lines[1::2])) == expected


@pytest.mark.parametrize("what", ["refusal", "page"])
def test_a_slow_client_gets_a_whole_answer_once_though_its_gateway_dies(tmp_path: Path, what: str) -> None:
    """A refusal, and a page, that are too long for the kernel to take at once: the next gateway does not answer again."""
    endpoint = Endpoint(tmp_path, [], max_answer_bytes=2**26)
    try:
        if what == "refusal":
            body = json.dumps(chat("long", max_tokens=3) | {"model": "x" * 6_000_000}).encode()
            raw = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        else:
            endpoint.publish(aliases={f"{number:02000}": Alias(stable=VERSION) for number in range(3_000)}, default=VERSION)
            until(lambda: len(HTTP.get(endpoint.url + "/v1/models").content) > 6_000_000, Patience.RUN, endpoint.said)
            raw = b"GET /v1/models HTTP/1.1\r\n\r\n"
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            client.connect(("127.0.0.1", endpoint.port))
            client.settimeout(60)
            client.sendall(raw)
            got = client.recv(1024)
            endpoint.kill_gateway()
            endpoint.live()
            head, _, rest = got.partition(b"\r\n\r\n")
            length = int(next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")).split()[1])
            while len(rest) < length:
                rest += client.recv(2**20)
            client.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
            rest += client.recv(2**16)
        assert rest[length:].startswith(b"HTTP/1.1 200 OK\r\n")
        assert b'"status"' in rest[length:]
        json.loads(rest[:length])
    finally:
        endpoint.close()


def test_a_client_that_leaves_while_no_gateway_looks_is_let_go(endpoint: Endpoint) -> None:
    raw = json.dumps(chat("leaves", max_tokens=100_000)).encode()
    with socket.create_connection(("127.0.0.1", endpoint.port), timeout=60) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(raw), raw))
        client.recv(1000)
        live = endpoint.live()
        os.kill(live, signal.SIGSTOP)
    os.kill(live, signal.SIGKILL)
    until(lambda: all(not engine.stats()["running"] for engine in endpoint.engines), Patience.SIGNAL)
    assert texts(HTTP.post(endpoint.url + CHAT, json=chat("next", max_tokens=3)).content).count("w") == 3
    assert HTTP.get(endpoint.url + "/metrics").text.count("ropewalk_connections 1.0") == 1


def test_a_request_of_which_replicas_die_is_given_up(tmp_path: Path) -> None:
    engines = [FakeEngine() for _ in range(5)]
    endpoint = Endpoint(tmp_path, engines)
    try:
        got = HTTP.post(endpoint.url + CHAT, json=chat("POISON"), timeout=60)
        assert (got.status_code, got.json()["error"]["code"]) == (502, "replicas_failed")
        assert texts(HTTP.post(endpoint.url + CHAT, json=chat("fine", max_tokens=2), timeout=60).content).count("w") == 2
    finally:
        endpoint.close()


def test_a_rating_counts_once_though_its_gateway_dies_before_it_has_answered(tmp_path: Path) -> None:
    endpoint = Endpoint(tmp_path, [FakeEngine()], feedback_folder=tmp_path / "feedback", capture={"mask": []})
    try:
        number = HTTP.post(endpoint.url + CHAT, json=chat("rated", max_tokens=1)).headers["x-request-id"]
        raw = json.dumps({"answer_id": number, "rating": "down"}).encode()
        writer = until(lambda: _writer(endpoint.live()), Patience.START, endpoint.said)
        writer.suspend()  # a slow disk
        with socket.create_connection(("127.0.0.1", endpoint.port), timeout=60) as client:
            client.sendall(b"POST /v1/feedback HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(raw), raw))
            for _ in range(2):  # whoever answers these has handed it over
                HTTP.get(endpoint.url + "/healthz")
            endpoint.kill_gateway()
            writer.resume()
            assert client.recv(1000).startswith(b"HTTP/1.1 200")
    finally:
        endpoint.close()
    until(lambda: not writer.is_running() or writer.status() == psutil.STATUS_ZOMBIE, Patience.SIGNAL)
    ratings = ratings_store(tmp_path / "feedback")
    assert ratings.read()["exchange"].to_pylist() == [number]


@pytest.mark.soak("starts six processes that import pyarrow; make test kills gateways and writers in test_capture.py")
def test_each_exchange_is_recorded_once_though_gateways_die(tmp_path: Path) -> None:
    """Twenty kills: between requests, within streams, and one right after a request that was refused."""
    engines = [FakeEngine("--hold", str(tmp_path / "hold"))]
    endpoint = Endpoint(tmp_path, engines, feedback_folder=tmp_path / "feedback", capture={})
    ids: list[str] = []
    try:
        for number in range(40):
            got = HTTP.post(endpoint.url + CHAT, json=chat(f"recorded {number}", max_tokens=3))
            ids.append(got.headers["x-request-id"])
            if number % 4 == 3:
                endpoint.kill_gateway()
        for number in range(9):
            _disturbed(
                endpoint, CHAT, chat(f"recorded in two halves {number}", max_tokens=9), {number % 8 + 1: endpoint.kill_gateway}
            )
        refused = HTTP.post(endpoint.url + CHAT, content=b"{")
        endpoint.kill_gateway()
        assert HTTP.post(endpoint.url + "/v1/feedback", json={"answer_id": ids[0], "rating": "up"}).status_code == 200
    finally:
        endpoint.close()
    results = [(exchange.prompt, exchange.outcome) for exchange in exchanges(tmp_path, None, None)]
    wanted = [*(f"recorded {number}" for number in range(40)), *(f"recorded in two halves {number}" for number in range(9))]
    assert sorted(results) == sorted([("", "refused"), *((prompt, "completed") for prompt in wanted)])
    assert refused.status_code == 400

"""Replicas and gateways are killed: streams go on at another replica, new connections at another gateway."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ropewalk.jobs.serving.feedback.read import exchanges
from ropewalk.jobs.serving.serve import gateways
from tests.jobs.serving.serve.gateway.endpoint import HTTP, Endpoint, FakeEngine, chat, open_stream, post, texts
from tests.patience import Patience, Stopwatch, until

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
USAGE = {"stream_options": {"include_usage": True}}


SOAK = pytest.mark.soak("make test runs engines of this program, by continue_from")


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
    moments = {1: lambda: _kill_busy(fragile), 17: lambda: _kill_busy(fragile)}
    assert _plain(_disturbed(fragile, path, body, moments)) == expected


def test_a_sampled_answer_goes_on_as_it_would_have(fragile: Endpoint) -> None:
    body = chat("sampled", max_tokens=30, temperature=0.8, seed=5)
    expected = _plain(_undisturbed(fragile, CHAT, body))
    assert _plain(_disturbed(fragile, CHAT, body, {10: lambda: _kill_busy(fragile)})) == expected


def test_an_answer_that_is_no_stream_is_asked_again(endpoint: Endpoint) -> None:
    body = chat("whole", max_tokens=60, stream=False)
    expected = json.loads(_undisturbed(endpoint, CHAT, body))["choices"]
    hold = endpoint.folder / "hold"
    hold.write_text("20")
    got: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: got.append(HTTP.post(endpoint.url + CHAT, json=body, timeout=60)))
    thread.start()
    until(lambda: hold.read_text() == "", Patience.SIGNAL)
    _kill_busy(endpoint)
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


def test_a_request_of_which_replicas_die_is_given_up(tmp_path: Path) -> None:
    engines = [FakeEngine() for _ in range(5)]
    endpoint = Endpoint(tmp_path, engines)
    try:
        got = HTTP.post(endpoint.url + CHAT, json=chat("POISON"), timeout=60)
        assert (got.status_code, got.json()["error"]["code"]) == (502, "replicas_failed")
        assert texts(HTTP.post(endpoint.url + CHAT, json=chat("fine", max_tokens=2), timeout=60).content).count("w") == 2
    finally:
        endpoint.close()


def test_connections_opened_after_a_kill_are_answered_at_once(tmp_path: Path) -> None:
    endpoint = Endpoint(tmp_path, [FakeEngine("--token", "0.02", slots=8)])
    try:
        for kill in range(3):
            with open_stream("POST", endpoint.url + CHAT, json=chat(f"open {kill}", max_tokens=100_000)) as stream:
                parts = stream.iter_raw()
                next(parts)
                endpoint.kill_gateway()
                watch = Stopwatch()
                assert post(endpoint.url + CHAT, json=chat("new", max_tokens=1)).status_code == 200
                assert watch.seconds < 1.0
                with pytest.raises(httpx.TransportError):  # a closed connection, not silence
                    for _ in parts:
                        pass
        until(lambda: not endpoint.engines[0].stats()["running"], Patience.SIGNAL)
    finally:
        endpoint.close()


def test_a_gateway_that_does_not_respond_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateways, "SILENT_LOOKS", 40)
    endpoint = Endpoint(tmp_path, [FakeEngine()])
    try:
        stopped = endpoint.live()
        os.kill(stopped, signal.SIGSTOP)
        assert post(endpoint.url + CHAT, json=chat("new", max_tokens=1)).status_code == 200
        assert endpoint.live() != stopped
    finally:
        endpoint.close()


@pytest.mark.soak("starts ten processes that import pyarrow; make test kills gateways and writers in test_capture.py")
def test_each_answered_exchange_is_recorded_once_though_gateways_die(tmp_path: Path) -> None:
    endpoint = Endpoint(tmp_path, [FakeEngine()], feedback_folder=tmp_path / "feedback", capture={})
    ids: list[str] = []
    try:
        for number in range(40):
            answer = post(endpoint.url + CHAT, json=chat(f"recorded {number}", max_tokens=3))
            ids.append(answer.headers["x-request-id"])
            if number % 4 == 3:
                endpoint.kill_gateway()
        refused = post(endpoint.url + CHAT, json={"messages": []})
        endpoint.kill_gateway()
        assert post(endpoint.url + "/v1/feedback", json={"answer_id": ids[0], "rating": "up"}).status_code == 200
    finally:
        endpoint.close()
    until(lambda: not list((tmp_path / "feedback").glob("*/spool-*")), Patience.STEP)
    results = [(exchange.prompt, exchange.outcome) for exchange in exchanges(tmp_path, None, None)]
    assert sorted(results) == sorted([("", "refused"), *((f"recorded {number}", "completed") for number in range(40))])
    assert refused.status_code == 400

"""A few thousand requests fuzzed by bytes; tests.benchmarks.fuzz_gateway sends a million, and schemathesis' cases."""

import asyncio
from pathlib import Path

from tests.benchmarks.fuzz_gateway import check_log, fuzz
from tests.jobs.serving.serve.gateway.endpoint import HTTP, Endpoint, FakeEngine, chat

REQUESTS = 3000


def test_fuzzed_requests_are_refused_or_answered(tmp_path: Path) -> None:
    settings = {"feedback_folder": tmp_path / "feedback", "capture": {}, "idle_seconds": 5.0}
    endpoint = Endpoint(tmp_path, [FakeEngine("--most", "16", slots=32)], **settings)
    try:
        live = endpoint.live()
        statuses = asyncio.run(fuzz(endpoint.port, REQUESTS, seed=1, at_once=16))
        assert statuses[200] > REQUESTS / 20
        assert statuses[400] > REQUESTS / 20
        assert endpoint.live() == live, "it has not crashed"
        check_log(endpoint.log())
        assert HTTP.post(endpoint.url + "/v1/chat/completions", json=chat("after all", max_tokens=2)).status_code == 200
    finally:
        endpoint.close()

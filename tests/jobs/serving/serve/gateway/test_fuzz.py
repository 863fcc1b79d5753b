"""Several hundred requests fuzzed by bytes; tests.benchmarks.fuzz_gateway sends a million, and schemathesis' cases."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.fuzz_gateway import WITH_TOKEN, fuzz, fuzzed
from tests.jobs.serving.serve.gateway.endpoint import HTTP, chat

REQUESTS = 600
STRANGE_HEADERS = {  # bytes that are no text
    "with a token": [("Authorization", b"Bearer \xba", 401)],
    "open": [("Origin", b"http\xba", 403), ("Host", b"evil\xba.example", 403)],
}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(WITH_TOKEN, id="with a token"),
        pytest.param({}, id="open", marks=pytest.mark.soak("make test sends them with a token")),
    ],
)
def test_fuzzed_requests_are_refused_or_answered(tmp_path: Path, settings: dict[str, Any]) -> None:
    with fuzzed(tmp_path, **settings) as endpoint:
        statuses = asyncio.run(fuzz(endpoint.port, REQUESTS, seed=1, at_once=16))
        assert statuses[200] > REQUESTS / 40
        assert statuses[400] > REQUESTS / 40
        headers = {"Authorization": "Bearer token"}
        answer = HTTP.post(endpoint.url + "/v1/chat/completions", json=chat("after all", max_tokens=2), headers=headers)
        assert answer.status_code == 200
        for name, value, status in STRANGE_HEADERS["with a token" if settings else "open"]:
            assert HTTP.get(endpoint.url + "/v1/models", headers={name: value}).status_code == status

"""A few thousand requests fuzzed by bytes; tests.benchmarks.fuzz_gateway sends a million, and schemathesis' cases."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.fuzz_gateway import WITH_TOKEN, fuzz, fuzzed
from tests.jobs.serving.serve.gateway.endpoint import HTTP, chat

REQUESTS = 2000


@pytest.mark.parametrize("settings", [WITH_TOKEN, {}], ids=["with a token", "open"])
def test_fuzzed_requests_are_refused_or_answered(tmp_path: Path, settings: dict[str, Any]) -> None:
    with fuzzed(tmp_path, **settings) as endpoint:
        statuses = asyncio.run(fuzz(endpoint.port, REQUESTS, seed=1, at_once=16))
        assert statuses[200] > REQUESTS / 40
        assert statuses[400] > REQUESTS / 40
        headers = {"Authorization": "Bearer token"}
        answer = HTTP.post(endpoint.url + "/v1/chat/completions", json=chat("after all", max_tokens=2), headers=headers)
        assert answer.status_code == 200


def test_headers_may_have_bytes_that_are_no_text(tmp_path: Path) -> None:
    with fuzzed(tmp_path / "token", **WITH_TOKEN) as endpoint:
        assert HTTP.get(endpoint.url + "/v1/models", headers={"Authorization": b"Bearer \xba"}).status_code == 401
    with fuzzed(tmp_path / "open") as endpoint:
        assert HTTP.get(endpoint.url + "/v1/models", headers={"Origin": b"http\xba"}).status_code == 403
        assert HTTP.get(endpoint.url + "/v1/models", headers={"Host": b"evil\xba.example"}).status_code == 403

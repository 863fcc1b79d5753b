"""Endpoints that tests of a module share."""

from collections.abc import Iterator

import pytest

from tests.jobs.serving.serve.gateway.endpoint import Endpoint, FakeEngine


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """Two engines with four slots, 5 ms a token, behind a gateway that takes bodies of 100 KB."""
    folder = tmp_path_factory.mktemp("endpoint")
    engines = [FakeEngine("--token", "0.005", "--hold", str(folder / "hold")) for _ in range(2)]
    endpoint = Endpoint(folder, engines, max_body_bytes=100_000)
    yield endpoint
    endpoint.close()

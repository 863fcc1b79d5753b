"""Engines that tests share: starting one takes seconds. Both have the same model, and a token."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ropewalk.jobs.inference.engines import process
from ropewalk.jobs.inference.engines.engine import EngineOptions
from ropewalk.jobs.inference.engines.find import find_engine
from ropewalk.jobs.inference.engines.process import EngineProcess
from ropewalk.jobs.inference.gguf.gguf import gguf_of
from tests.forked import FORKING
from tests.jobs.tiny import tiny_model
from tests.patience import HANG_SECONDS

SLOTS = 2
TOKEN = "a-secret-of-the-test"
ENGINES = ("transformers", "llamacpp")


@pytest.fixture(scope="package")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("engines") / "tiny")


@pytest.fixture(scope="package")
def engines(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, EngineProcess]]:
    logs = tmp_path_factory.mktemp("logs")
    options = EngineOptions(threads=1, slots=SLOTS, name="tiny", token=TOKEN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "subprocess", FORKING)
        started = {"transformers": EngineProcess.start(find_engine("transformers"), model, options, logs / "transformers")}
    started["llamacpp"] = EngineProcess.start(find_engine("llamacpp"), gguf_of(model, "F32"), options, logs / "llamacpp")
    try:
        for engine in started.values():
            engine.await_ready(HANG_SECONDS)
        yield started
    finally:
        for engine in started.values():
            engine.stop()


@pytest.fixture(params=ENGINES)
def engine(engines: dict[str, EngineProcess], request: pytest.FixtureRequest) -> EngineProcess:
    return engines[request.param]

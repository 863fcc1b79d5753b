"""Engines that tests share: starting one takes seconds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.engines.engine import EngineOptions
from jobs.engines.find import find_engine
from jobs.engines.process import EngineProcess
from tests.jobs.tiny import tiny_model
from tests.patience import HANG_SECONDS

SLOTS = 2


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("engines") / "tiny")


@pytest.fixture(scope="session")
def transformers_engine(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    log = tmp_path_factory.mktemp("logs") / "transformers.log"
    options = EngineOptions(threads=1, slots=SLOTS, name="tiny")
    with EngineProcess.start(find_engine("transformers"), model, options, log) as engine:
        engine.await_ready(HANG_SECONDS)
        yield engine

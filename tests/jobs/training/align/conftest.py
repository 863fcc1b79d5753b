"""A small model and, for GRPO, prompts."""

from pathlib import Path

import pytest

from tests.jobs.training.align.pairs import make_model
from tests.jobs.training.align.rolling import prompts, write_prompts


@pytest.fixture(scope="package")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="package")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("data") / "prompts.jsonl", prompts(10))

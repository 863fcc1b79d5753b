"""Samples of fixed prompts at validations: what the model writes then, at any number of ranks, and nothing else moves."""

from pathlib import Path

import pytest

from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.errors import EXIT_NEVER_RETRY, ConfigError
from ropewalk.jobs.inference.scoring.encode import encode
from ropewalk.jobs.inference.scoring.generate import Sampling, generate
from ropewalk.jobs.inference.scoring.open_model import open_model
from ropewalk.jobs.results.readable import read_table
from ropewalk.jobs.training.align.config import AlignConfig
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import launch, log_of, make_run, pretrain_config, start

PROMPTS = ["the rope is ", "", "strands from"]


@pytest.mark.soak("four ranks; test_it_answers_in_the_terminal compares samples with what the model answers")
def test_samples_are_what_the_model_writes_and_training_is_the_same(tmp_path: Path) -> None:
    data, root = make_dataset(tmp_path / "data"), tmp_path / "runs"
    keys = {"steps": 4, "validation": {"every_steps": 2, "max_sequences": 4}}
    plain = make_run(root, pretrain_config(data, **keys))
    requests = [
        make_run(root, pretrain_config(data, samples={"prompts": PROMPTS, "max_new_tokens": 6}, **keys)) for _ in range(2)
    ]
    for run, ranks in ((plain, 1), (requests[0], 1), (requests[1], 2)):
        launch(run, ranks)
    losses = [[line["train/loss"] for line in run.read_metrics() if "train/loss" in line] for run in (plain, requests[0])]
    assert losses[0] == losses[1]
    tables = [read_table(run.path / "tables/samples.json") for run in requests]
    assert tables[0] == tables[1]
    assert tables[0] is not None
    assert [row[:2] for row in tables[0].rows] == [[step, prompt] for step in (2, 4) for prompt in PROMPTS]
    opened = open_model(str(requests[0].path))
    ids = [encode(opened, prompt) or [opened.end] for prompt in PROMPTS]
    written = [item.text for item in generate(opened, ids, Sampling(max_new_tokens=6))]
    assert [row[2] for row in tables[0].rows[-3:]] == written


def test_a_prompt_without_room_is_refused_in_words(tmp_path: Path) -> None:
    run = make_run(tmp_path, pretrain_config(make_dataset(tmp_path / "data"), samples={"prompts": ["a"], "max_new_tokens": 256}))
    assert start(run, 1).wait() == [EXIT_NEVER_RETRY]
    assert "samples.max_new_tokens: 256 leave no room for a prompt: the context has 256 tokens" in log_of(run)


def test_a_reward_model_writes_nothing() -> None:
    values = {"method": "reward", "data": "d", "steps": 1, "model": {"path": "m"}, "samples": {"prompts": ["a"]}}
    with pytest.raises(ConfigError, match="samples: reward does not use it"):
        load_config(AlignConfig, values)

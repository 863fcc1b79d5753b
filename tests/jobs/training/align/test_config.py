"""Keys that do not go together are refused, and what is unset follows from the method."""

from pathlib import Path
from typing import Any

import pytest

from ropewalk import jobs
from ropewalk.cluster.config_reader import load_config, read_job_file
from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.training.align.config import AlignConfig

BASE = {"model": {"path": "/model"}, "data": "/data.jsonl", "steps": 100}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"method": "orpo", "reference": "copy"}, "orpo uses no reference"),
        ({"reference": "none"}, "dpo needs one"),
        ({"reference": "adapter"}, "set lora too"),
        ({"loss": "robust"}, "set label_smoothing"),
        ({"method": "kto", "label_smoothing": 0.1}, "kto does not use it"),
        ({"gamma": 1.0}, "choose simpo"),
        ({"method": "reward", "beta": 0.2}, "reward does not use it"),
        ({"method": "simpo", "length_normalized": True}, "simpo does not use it"),
        ({"model": {"preset": "tiny"}}, "set path or run"),
        ({"method": "ppo"}, "dpo"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
        (
            {"method": "grpo", "grpo": {"rewards": ["length"], "workers": 2}, "resources": {"gpus": 8}},
            r"grpo\.workers: .*generate on CPUs, for which the GPUs would wait",
        ),
    ],
    ids=str,
)
def test_keys_that_do_not_go_together_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(AlignConfig, {**BASE, **keys})


@pytest.mark.parametrize(
    ("keys", "every", "samples"),
    [
        ({"steps": 1000, "batch": {"global_batch": 16}}, 50, 256),
        ({"steps": 40, "batch": {"global_batch": 8}}, 4, 16),
        ({"steps": 6, "batch": {"global_batch": 2}}, 1, 16),
        ({"steps": "100", "validation": {"every_steps": "10"}, "batch": {"global_batch": "4"}}, 10, 20),
        ({"steps": 100, "validation": {"max_sequences": 7}}, 5, 7),
        ({"steps": 1000, "method": "grpo", "batch": {"global_batch": 32}}, 100, 64),
    ],
    ids=str,
)
def test_a_short_run_does_not_spend_its_time_on_validation(keys: dict[str, Any], every: int, samples: int) -> None:
    result = load_config(AlignConfig, {**BASE, "seq_len": 1024, **keys}).validation
    assert (result.every_steps, result.max_sequences) == (every, samples)


def test_what_is_unset_follows_from_the_method() -> None:
    plain, adapted = (load_config(AlignConfig, {**BASE, **keys}) for keys in ({}, {"lora": {}}))
    assert (plain.strength, plain.compared_with, plain.optim.lr) == (0.1, "copy", 1e-6)
    assert (adapted.compared_with, adapted.optim.lr) == ("adapter", 1e-5)
    assert load_config(AlignConfig, {**BASE, "lora": {}, "optim": {"lr": 3e-4}}).optim.lr == 3e-4
    simpo = load_config(AlignConfig, {**BASE, "method": "simpo"})
    assert (simpo.strength, simpo.compared_with) == (2.0, "none")
    assert plain.anomaly.spike_factor is None, "a loss that falls to 0, or below, has no spikes"
    assert load_config(AlignConfig, {**BASE, "anomaly": {"policy": "skip"}}).anomaly.spike_factor is None
    assert (plain.validation.every_steps, plain.validation.patience) == (5, 3)
    assert load_config(AlignConfig, {**BASE, "validation": {"patience": None}}).validation.patience is None


@pytest.mark.parametrize(("name", "job"), [("align.yaml", "align"), ("align-sweep.yaml", "sweep")])
def test_the_job_files_are_valid(name: str, job: str) -> None:
    values = read_job_file(Path(jobs.__file__).parent / "configs" / name, job)
    config = load_config(AlignConfig, values["base"] if job == "sweep" else values)
    assert config.method == "dpo"

"""Distilling as a whole: the formula's loss at any number of ranks, killed and resumed, what is measured."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ropewalk.cluster.run.directory import RunDir
from ropewalk.datapipe.loader.loader import Source, TokenLoader
from ropewalk.jobs.training.distill.losses import Mix
from ropewalk.jobs.training.loop.architecture.model_record import require_record
from ropewalk.jobs.training.loop.weights.export import export
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import TINY, equal, events, launch, log_of, losses, make_run, pretrain_config, start, weights
from tests.jobs.tiny import tiny_model


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("teacher"), num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run whose model has learnt a little."""
    sizes = {**TINY, "num_hidden_layers": 3}
    config = pretrain_config(data, model={"config": sizes}, steps=25, checkpoint={"every_steps": 25})
    run = make_run(tmp_path_factory.mktemp("trained"), config)
    launch(run, 1)
    return run


def distill_config(teacher: Path | str, data: Path, **changes: Any) -> dict[str, Any]:
    return {
        "teacher": str(teacher),
        "student": {"prune": {"layers": 2, "width": 0.75, "calibration": {"sequences": 6}}},
        "data": str(data),
        "seq_len": 24,
        "steps": 6,
        "batch": {"global_batch": 6, "micro_batch": 2},
        "optim": {"lr": 3e-3, "warmup_steps": 2},
        "checkpoint": {"every_steps": 2},
        "validation": {"every_steps": 100, "max_sequences": 5},
        **changes,
    }


def distill_run(root: Path, config: dict[str, Any]) -> RunDir:
    return RunDir.create(
        "distill", {"job": "distill", "entry": "ropewalk.jobs.training.distill.job:main", "config": config}, root
    )


def plain_step_loss(student: Any, teacher: Any, tokens: torch.Tensor, mix: Mix) -> float:
    """The mean loss of a step's tokens, in float64, by torch's own functions."""
    inputs, labels = tokens[:, :-1], tokens[:, 1:]
    with torch.no_grad():
        ours, its = (model.double()(input_ids=inputs, use_cache=False).logits for model in (student, teacher))
    log_q, log_p = (torch.log_softmax(each / mix.temperature, -1) for each in (ours, its))
    if mix.divergence == "reverse_kl":
        log_q, log_p = log_p, log_q
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
    cross = torch.nn.functional.cross_entropy(ours.transpose(1, 2), labels).item()
    return mix.alpha * cross + (1 - mix.alpha) * mix.temperature**2 * kl


def first_tokens(data: Path) -> torch.Tensor:
    """The first step's sequences."""
    return torch.from_numpy(TokenLoader([Source(str(data))], seq_len=24, seed=0).read(range(6)))


SHARED = {"loss": "reverse_kl", "temperature": 2.0, "alpha": 0.3, "share": {"groups": 1}, "steps": 7}


@pytest.fixture(scope="module")
def whole(teacher: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run that nothing disturbed; the student's layers share their weights."""
    run = distill_run(tmp_path_factory.mktemp("whole"), distill_config(teacher, data, **SHARED))
    launch(run, 1)
    return run


def test_the_loss_of_a_run_is_the_formula_at_any_number_of_ranks(
    teacher: Path, data: Path, whole: RunDir, tmp_path: Path
) -> None:
    both = distill_run(tmp_path, distill_config(teacher, data, **SHARED))
    results = [whole.results(), launch(both, 2)]
    assert losses(both) == pytest.approx(losses(whole), rel=1e-6)
    first = AutoModelForCausalLM.from_pretrained(whole.path / "student")
    first.model.layers[1].load_state_dict(first.model.layers[0].state_dict())  # what a group begins with
    mix = Mix("reverse_kl", 0.5, 2.0, 0.3)
    wanted = plain_step_loss(first, AutoModelForCausalLM.from_pretrained(teacher), first_tokens(data), mix)
    assert losses(both)[1] == pytest.approx(wanted, rel=1e-6)
    assert [row["variant"] for row in results[1]["table"]] == ["teacher", "student before", "student"]
    for item, two in zip(results[0]["table"], results[1]["table"], strict=True):
        assert item["loss"] == pytest.approx(two["loss"], rel=1e-6)
    for row in results[0]["table"][1:]:
        assert row["kl"] > 0
        assert row["parameters"] < results[0]["table"][0]["parameters"]


def test_killed_and_resumed_is_bit_identical(teacher: Path, data: Path, whole: RunDir, tmp_path: Path) -> None:
    killed = distill_run(tmp_path, distill_config(teacher, data, **SHARED))
    group = start(killed, 1, TEST_HOOK="stall_in_step")
    group.until(lambda: (killed.path / "stalled").exists() and bool(events(killed, "checkpoint")))
    group.kill()
    launch(killed, 1)
    assert events(killed, "resumed")[0]["step"] in {2, 4}
    assert equal(weights(whole), weights(killed))
    assert losses(whole) == losses(killed)
    assert whole.results()["table"] == killed.results()["table"]


@pytest.mark.soak(
    "30 steps; test_the_loss_of_a_run_is_the_formula_at_any_number_of_ranks and"
    " test_cached_logits_are_computed_once_and_a_kill_changes_nothing open students"
)
def test_a_student_comes_nearer_to_its_teacher_and_leaves_as_a_model(trained: RunDir, data: Path, tmp_path: Path) -> None:
    keys = {"steps": 30, "checkpoint": {"every_steps": 30}}
    run = distill_run(tmp_path, distill_config(trained.path, data, **keys))
    results = launch(run, 1)
    before, after = results["table"][1:]
    assert after["kl"] < 0.5 * before["kl"]
    report = json.loads((run.path / "distill/report.json").read_text())
    assert report["table"] == results["table"]
    assert "Held-out text" in (run.path / "distill/report.html").read_text()
    record = require_record(run).weights
    assert record is not None
    assert (record.run, record.step) == (str(trained.path), 25), "the model comes from its teacher"
    folder = export(run, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert (model.config.num_hidden_layers, model.config.intermediate_size) == (2, 48)


@pytest.mark.parametrize(("alpha", "expected"), [(0.5, False), (1.0, True)])
def test_validation_is_not_taken_from_a_loss_of_another_kind(
    alpha: float, expected: bool, teacher: Path, data: Path, tmp_path: Path
) -> None:
    """Validation is cross entropy with the text; the training loss is too only if nothing else is learnt."""
    run = distill_run(tmp_path, distill_config(teacher, data, steps=2, alpha=alpha))
    results = launch(run, 1)
    assert "validation/loss" in results
    assert ("validation/gap" in results) is expected
    if expected:
        assert results["validation/gap"] == pytest.approx(results["validation/loss"] - sum(losses(run).values()) / 2)


def test_a_teacher_that_does_not_fit_is_refused(data: Path, tmp_path: Path) -> None:
    gpt2 = tiny_model(tmp_path / "gpt2", model_type="gpt2", n_layer=1, n_head=2, n_embd=16, n_positions=64)
    run = distill_run(tmp_path, distill_config(gpt2, data))
    assert start(run, 1).wait() == [42]
    assert "the architecture 'gpt2' is not supported" in log_of(run)


def test_cached_logits_are_computed_once_and_a_kill_changes_nothing(teacher: Path, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data")
    config = distill_config(teacher, data, steps=24, teacher_logits="cached", cache={"size": 12}, checkpoint={"every_steps": 24})
    config["optim"]["lr"] = 3e-4  # with more, 24 steps carry the rounding of two ranks above what is compared below
    killed = distill_run(tmp_path, config)
    group = start(killed, 1, TEST_HOOK="stall_in_chunk")
    group.until((killed.path / "stalled").exists)
    group.kill()
    (first,) = tmp_path.glob("data.teacher/*/logits-000000.arrow")
    written = first.stat().st_mtime_ns
    results = launch(killed, 2)
    chunks = sorted(tmp_path.glob("data.teacher/*/*.arrow"))
    assert len(chunks) == 3
    assert first.stat().st_mtime_ns == written, "what is kept is not computed again"
    content = {path: path.read_bytes() for path in chunks}
    chunks[1].write_bytes(content[chunks[1]][:-900] + b"x" * 10 + content[chunks[1]][-890:])
    again = distill_run(tmp_path, config)
    launch(again, 1)
    assert {path: path.read_bytes() for path in chunks} == content, "a damaged chunk is made anew, the same by one rank as by two"
    assert losses(again) == pytest.approx(losses(killed), rel=1e-6)
    facts = results["teacher_logits"]
    assert facts["bytes"] == sum(len(raw) for raw in content.values())
    student, tokens = AutoModelForCausalLM.from_pretrained(killed.path / "student"), first_tokens(data)
    online = plain_step_loss(student, AutoModelForCausalLM.from_pretrained(teacher), tokens, Mix("forward_kl", 0.5, 1.0, 0.0))
    assert losses(killed)[1] == pytest.approx(online, rel=0.2), "the estimate of the same divergence"


@pytest.mark.soak("three runs; make test runs test_a_reference_is_that_of_one_format")
def test_cached_logits_are_those_of_one_format(teacher: Path, tmp_path: Path) -> None:
    """On a CPU auto is fp32, and on a GPU bf16: what was computed in one is not taken for the other."""
    data = make_dataset(tmp_path / "data")
    config = distill_config(teacher, data, steps=1, teacher_logits="cached", cache={"size": 4})
    for compute, folders in (("auto", 1), ("fp32", 1), ("bf16", 2)):
        launch(distill_run(tmp_path, {**config, "precision": {"compute": compute}}), 1)
        assert len(list((tmp_path / "data.teacher").iterdir())) == folders, compute

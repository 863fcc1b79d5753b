"""Schedules, presets, weight decay, and initial weights."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.loader.prefetch import prefetch
from ropewalk.datapipe.manifest import TokenizerRecord
from ropewalk.jobs.models.compress.methods import RecoverConfig
from ropewalk.jobs.training.finetune.config import FinetuneConfig
from ropewalk.jobs.training.loop.architecture.bare_model import bare_model
from ropewalk.jobs.training.loop.architecture.model_config import model_config
from ropewalk.jobs.training.loop.model import ModelPlan, build_model
from ropewalk.jobs.training.loop.model_keys import LoraConfig, ModelConfig
from ropewalk.jobs.training.loop.optim_keys import OptimConfig
from ropewalk.jobs.training.loop.recipe import ModelStart
from ropewalk.jobs.training.loop.source import reader_for
from ropewalk.jobs.training.loop.update.optimizer import learning_rate, make_optimizer, set_learning_rate
from ropewalk.jobs.training.loop.update.state import Progress
from ropewalk.jobs.training.loop.weights.load_checkpoint import load_first_weights
from ropewalk.jobs.training.pretrain.config import PretrainConfig
from ropewalk.sharding.checkpoints.manifest import CheckpointManifest
from ropewalk.sharding.config import ParallelConfig, PrecisionConfig
from ropewalk.sharding.group import Group, process_group
from ropewalk.sharding.parallelize import parallelize
from tests.jobs.launch import TINY
from tests.patience import until

TOKENIZER = TokenizerRecord(name="bytes", hash="xxh3:0", vocabulary=257, end_of_document=256, version="0")


def rates(steps: int = 100, **config: object) -> list[float]:
    optim = OptimConfig(lr=1.0, warmup_steps=10, min_lr_ratio=0.1, **config)  # type: ignore[arg-type]
    return [learning_rate(optim, step, steps) for step in range(steps)]


def test_warm_up_is_linear_and_reaches_the_top() -> None:
    for schedule in ("cosine", "linear", "wsd", "constant"):
        assert rates(schedule=schedule)[:11] == pytest.approx([0.1 * (i + 1) for i in range(10)] + [1.0])


@pytest.mark.parametrize(("steps", "warmup"), [(5, 0), (10, 1), (150, 15), (200, 20), (5000, 20)])
def test_a_warm_up_that_is_not_set_is_20_steps_or_a_tenth_of_a_short_run(steps: int, warmup: int) -> None:
    pretrain = load_config(PretrainConfig, {"data": "x", "steps": steps, "optim": {"lr": 1e-2}})
    finetune = load_config(FinetuneConfig, {"data": "x", "steps": str(steps), "model": {"path": "x"}, "lora": {}})
    recover = RecoverConfig.model_validate({"steps": steps})
    for config in (pretrain, finetune, recover):
        assert config.optim.warmup_steps == warmup
        assert type(config).model_validate(config.model_dump(mode="json")).optim.warmup_steps == warmup
    assert (pretrain.optim.lr, finetune.optim.lr, recover.optim.lr) == (1e-2, 2e-4, 1e-4)
    assert learning_rate(pretrain.optim, steps // 2, steps) > pretrain.optim.lr / 2, "it is near its peak"


def test_a_warm_up_as_long_as_the_run_is_refused_at_submission() -> None:
    config = load_config(PretrainConfig, {"data": "x", "steps": 20, "optim": {"warmup_steps": 20}})
    with pytest.raises(ConfigError, match=r"not below steps, 20, .* set at most 19, or remove it for 2"):
        config.check_keys()
    with pytest.raises(ValidationError, match="not below steps"):
        RecoverConfig.model_validate({"steps": 5, "optim": {"warmup_steps": 9}})
    load_config(PretrainConfig, {"data": "x", "steps": 20, "optim": {"warmup_steps": 19}}).check_keys()


def test_cosine_falls_to_its_lowest() -> None:
    values = rates(schedule="cosine")
    assert values[55] == pytest.approx(0.55)
    assert values[-1] == pytest.approx(0.1, abs=1e-3)
    assert values[10:] == sorted(values[10:], reverse=True)


def test_linear_falls_by_equal_steps() -> None:
    values = rates(schedule="linear")
    assert values[10:] == pytest.approx([1 - 0.01 * step for step in range(90)])


def test_z_loss_and_an_objective_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="z_loss is part of the built-in loss"):
        load_config(PretrainConfig, {"data": "x", "steps": 20, "z_loss": 1e-4, "objective": "mine:Mine"})


def test_wsd_is_flat_and_then_falls() -> None:
    values = rates(schedule="wsd", decay_fraction=0.2)
    assert values[10:80] == [1.0] * 70
    assert values[90] == pytest.approx(0.55)
    assert 0.1 < values[-1] < 0.2


def test_moments_in_bf16_need_a_beta_that_they_can_resolve() -> None:
    keys = {"data": "x", "steps": 20, "precision": {"optimizer": "bf16"}}
    load_config(PretrainConfig, keys).check_keys()
    with pytest.raises(ConfigError, match=r"0.999 is too close to 1 for moments in bf16.* set optim.betas=\[0.9,0.95\]"):
        load_config(PretrainConfig, {**keys, "optim": {"betas": [0.9, 0.999]}}).check_keys()


def test_an_adapter_has_no_base_width() -> None:
    keys = {"data": "x", "steps": 20, "model": {"path": "x"}, "optim": {"base_width": 64}}
    load_config(FinetuneConfig, keys).check_keys()
    with pytest.raises(ConfigError, match="base_width: the rate of an adapter does not depend on the width"):
        load_config(FinetuneConfig, {**keys, "lora": {}}).check_keys()


def test_only_matrices_decay() -> None:
    model = AutoModelForCausalLM.from_config(config_of(ModelConfig(config=TINY)))
    inner, outer, vectors = make_optimizer(model, OptimConfig(weight_decay=0.3)).param_groups
    assert inner["weight_decay"] == outer["weight_decay"] == 0.3
    assert vectors["weight_decay"] == 0.0
    assert all(p.dim() == 2 for p in inner["params"] + outer["params"])
    assert all(p.dim() == 1 for p in vectors["params"])
    assert [p is model.get_input_embeddings().weight for p in outer["params"]] == [True]


@pytest.mark.parametrize(("name", "factor"), [("adamw", 1 / 4), ("muon", 1 / 2)])
def test_the_rate_of_matrices_falls_with_the_width(name: str, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with process_group() as group, torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(ModelConfig(config={**TINY, "hidden_size": 128})))
        model = parallelize(model, group, ParallelConfig(), PrecisionConfig())
        optimizer = make_optimizer(model, OptimConfig.model_validate({"name": name, "base_width": 32}))
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5 * factor, 0.5 / 4, 0.5], "the embeddings are the head"


def config_of(model: ModelConfig, vocabulary: int = 257, seq_len: int = 32) -> object:
    return model_config(model, vocabulary=vocabulary, end_of_document=256, seq_len=seq_len)


@pytest.mark.parametrize(
    ("preset", "vocabulary", "least", "most"),
    [("tiny", 8192, 1e6, 3e6), ("small", 8192, 20e6, 30e6), ("smollm-135m", 49152, 134e6, 135e6), ("8b", 128256, 8.8e9, 8.9e9)],
)
def test_presets_have_their_size(preset: str, vocabulary: int, least: float, most: float) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(ModelConfig(preset=preset), vocabulary))  # type: ignore[arg-type]
    assert least < sum(p.numel() for p in model.parameters()) < most


def test_initial_weights_are_the_seeds_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run = RunDir.create("test", {"config": {"seed": 5}}, tmp_path)
    plan = ModelPlan(config=config_of(ModelConfig(config=TINY)), seq_len=32)
    full = load_first_weights(plan.config, None, run)
    with process_group() as group:
        torch.rand(3)
        model = build_model(plan, run, group, ParallelConfig(), PrecisionConfig())
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter.full_tensor(), full.get_parameter(name))  # type: ignore[attr-defined]
        assert [n for n, _ in model.named_parameters()] == [n for n, _ in full.named_parameters()]
        for name, buffer in full.named_buffers():  # the rotary embedding's, which no checkpoint repairs
            assert torch.equal(model.get_buffer(name), buffer)


@pytest.mark.parametrize("tied", [True, False])
def test_a_frozen_model_is_kept_in_the_format_that_it_computes_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tied: bool
) -> None:
    """A teacher or a reference: half the memory, and the same logits to the bit."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run = RunDir.create("test", {"config": {"seed": 5}}, tmp_path)
    plan = ModelPlan(config=config_of(ModelConfig(config={**TINY, "tie_word_embeddings": tied})), seq_len=32)
    precision = PrecisionConfig(compute="bf16")
    tokens = torch.arange(32)[None]
    with process_group() as group, torch.no_grad():
        frozen = build_model(plan, run, group, ParallelConfig(), precision, trainable=False)
        trained = build_model(plan, run, group, ParallelConfig(), precision).eval()
        assert {parameter.dtype for parameter in frozen.parameters()} == {torch.bfloat16}
        assert {parameter.dtype for parameter in trained.parameters()} == {torch.float32}
        assert len(list(frozen.parameters())) == len(list(trained.parameters()))
        assert torch.equal(frozen(input_ids=tokens).logits, trained(input_ids=tokens).logits)


def test_ranks_hear_from_rank_0_while_it_loads_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They wait in a collective, which may not take as long as a large model on a slow disk does."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    messages: list[object] = []

    def load(config: Any, head: Any) -> Any:
        until(lambda: messages)
        return bare_model(config, head)

    monkeypatch.setattr("ropewalk.jobs.training.loop.weights.on_main._KEEP_ALIVE_SECONDS", 0.01)
    monkeypatch.setattr("ropewalk.jobs.training.loop.weights.run_weights.record", lambda *_: None)
    monkeypatch.setattr("ropewalk.jobs.training.loop.weights.run_weights.bare_model", load)
    monkeypatch.setattr(Group, "broadcast_object", lambda _, value, *__: messages.append(value) or value)
    plan = ModelPlan(config=config_of(ModelConfig(config=TINY)), seq_len=32).with_lora(LoraConfig(), 0)
    run = RunDir.create("test", {"config": {"seed": 5}}, tmp_path)
    with process_group() as group:
        build_model(plan, run, group, ParallelConfig(), PrecisionConfig())
    assert messages[0] == "working"


def test_a_directory_gives_configuration_and_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    value = AutoModelForCausalLM.from_config(config_of(ModelConfig(config=TINY)))
    value.save_pretrained(tmp_path / "model")
    run = RunDir.create("test", {"config": {}}, tmp_path)
    plan = ModelPlan.of(ModelConfig(path=str(tmp_path / "model")), run, tokenizer=TOKENIZER, seq_len=32)
    with process_group() as group:
        model = build_model(plan, run, group, ParallelConfig(), PrecisionConfig())
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter.full_tensor(), value.get_parameter(name))  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [256, 4000])
def test_a_vocabulary_that_does_not_fit_is_refused(size: int) -> None:
    with pytest.raises(ConfigError, match=f"vocabulary has {size} tokens, the data set's tokenizer 257"):
        config_of(ModelConfig(config={**TINY, "vocab_size": size}))


def test_a_padded_vocabulary_is_fine() -> None:
    assert config_of(ModelConfig(config={**TINY, "vocab_size": 320})).vocab_size == 320  # type: ignore[attr-defined]


def test_more_positions_than_the_model_has_are_refused() -> None:
    with pytest.raises(ConfigError, match="seq_len: 512 exceeds the model's 256"):
        config_of(ModelConfig(config=TINY), seq_len=512)


def test_an_unknown_model_type_is_named() -> None:
    with pytest.raises(ConfigError, match="no-such-model"):
        config_of(ModelConfig(config={"model_type": "no-such-model"}))


def test_a_wrong_key_is_named_with_its_neighbour() -> None:
    with pytest.raises(ConfigError, match=r"optim\.warmup_step.*optim\.warmup_steps"):
        load_config(PretrainConfig, {"data": "x", "steps": 1, "optim": {"warmup_step": 1}})


def test_batches_for_a_gpu_are_pinned_by_the_thread_that_reads_them_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, object]] = []
    current = threading.current_thread()

    def pinned(tensor: torch.Tensor) -> torch.Tensor:
        calls.append(("pinned", threading.current_thread() is current))
        return tensor

    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(("device", device)))
    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
    for device in (torch.device("cpu"), torch.device("cuda", 1)):
        batches = list(prefetch(reader_for(device, lambda positions: {"input_ids": torch.tensor([[*positions]])}), [[1, 2]]))
        assert [batch["input_ids"].tolist() for batch in batches] == [[[1, 2]]]
    assert calls == [("device", torch.device("cuda", 1)), ("pinned", False)]


def test_a_run_that_starts_from_anothers_checkpoint_has_validations_of_its_own(tmp_path: Path) -> None:
    """The other's best step is none of its own, and the other's patience is not to end it."""
    values = {"best_validation": 1.0, "best_step": 200, "validations_without_gain": 3, "finished": True, "loss": 2.0}
    location = {"world_size": 1, "attempt": 1, "files": [], "identity": {}, "config_hash": "x"}
    manifest = CheckpointManifest.model_validate({"step": 300, "position": 1200, "progress": values, **location})
    trainer: Any = SimpleNamespace(
        progress=Progress.of(manifest),
        checkpoints=SimpleNamespace(last_step=300),
        report=SimpleNamespace(event=lambda *_, **__: None, start=lambda _: None),
        store=SimpleNamespace(load=lambda *_, **__: manifest),
    )
    start = ModelStart(plan=Any, checkpoint=(StoragePath(str(tmp_path)), manifest), source_run=RunDir(tmp_path))
    start.load(trainer)
    progress = trainer.progress
    assert (progress.step, progress.position, progress.loss, progress.finished) == (300, 1200, 2.0, False)
    assert progress.improved(1.5, saved=True)
    assert (progress.best_step, progress.validations_without_gain) == (300, 0)

"""Low-rank adapters in the loop: peft's own numbers on any number of ranks, small checkpoints, a reference for nothing."""

import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.training.loop.model_keys import LoraConfig
from ropewalk.jobs.training.loop.weights.load_checkpoint import load_model
from ropewalk.jobs.training.loop.weights.lora import adapter_off, lora_adapter, merge_adapter, save_adapter
from ropewalk.jobs.training.loop.weights.weight_reader import LoadedWeights
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import TINY, equal, events, launch, losses, pretrain_config, start, weights

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # what peft 0.21 asks of v5

LORA = {"rank": 4, "alpha": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base"))


def tiny_model(folder: Path, **changes: Any) -> Path:
    from transformers import AutoConfig

    torch.manual_seed(0)
    config = AutoConfig.for_model(**{**TINY, **changes}, vocab_size=257)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def make_run(root: Path, config: dict[str, Any], recipe: str = "lora") -> RunDir:
    return RunDir.create("test", {"job": "pretrain", "entry": f"tests.jobs.recipes:{recipe}", "config": config}, root)


def lora_config(data: Path, base: Path, **changes: Any) -> dict[str, Any]:
    return pretrain_config(data, model={"path": str(base)}, checkpoint={"every_steps": 3}, **changes)


def peft_losses(data: Path, base: Path, config: dict[str, Any], **options: Any) -> tuple[list[float], Any]:
    """Losses of the same training by peft and plain torch, in one process."""
    from ropewalk.datapipe.loader.loader import Source, TokenLoader
    from ropewalk.jobs.training.loop.optim_keys import OptimConfig
    from ropewalk.jobs.training.loop.update.optimizer import learning_rate

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = lora_adapter(LoraConfig(**{**LORA, **options}), config.get("seed", 0))(model)
    wrapped: Any = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), peft_options(**options))
    plain = {name.removeprefix("base_model.model."): p for name, p in wrapped.named_parameters() if p.requires_grad}
    ours = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert plain.keys() == ours.keys()
    for name, parameter in plain.items():
        parameter.data.copy_(ours[name].data)
    settings = OptimConfig.model_validate(config["optim"])
    matrices, vectors = [p for p in plain.values() if p.dim() > 1], [p for p in plain.values() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], betas=settings.betas)
    loader, size, results = TokenLoader([Source(str(data))], seq_len=32, seed=0), config["batch"]["global_batch"], []
    for step in range(config["steps"]):
        tokens = torch.from_numpy(loader.read(range(step * size, (step + 1) * size)))
        logits = wrapped(input_ids=tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.values(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step, config["steps"])
        optimizer.step()
        optimizer.zero_grad()
        results.append(loss.item())
    return results, wrapped


def peft_options(**options: Any) -> Any:
    messages = {"dora": "use_dora", "rslora": "use_rslora"}
    more = {messages[name]: value for name, value in options.items()}
    return peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear", **more)


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"dora": True}, marks=pytest.mark.soak("make test computes DoRA on two ranks in test_head_sharded.py")),
        pytest.param({"rslora": True}, marks=pytest.mark.soak("another scale of the adapter")),
    ],
    ids=str,
)
def test_it_is_pefts_training_at_1_2_and_3_ranks(data: Path, base: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    config = lora_config(data, base, steps=4, optim={"lr": 3e-3, "warmup_steps": 2, "eps": 1e-8})
    expected, wrapped = peft_losses(data, base, config, **options)
    trained = {name.removeprefix("base_model."): p for name, p in wrapped.named_parameters() if p.requires_grad}
    for ranks in (1, 3) if not options else (2,):
        run = make_run(tmp_path, {**config, "lora": {**LORA, **options}})
        launch(run, ranks)
        assert list(losses(run).values()) == pytest.approx(expected, rel=1e-6)
        saved = weights(run)
        assert {name for name in saved if name.startswith("model.")} == trained.keys()
        for name, parameter in trained.items():
            torch.testing.assert_close(saved[name], parameter.detach(), rtol=1e-4, atol=1e-5)
    merged = load_model(run)[0]
    tokens = torch.arange(20)[None]
    torch.testing.assert_close(merged(tokens).logits, wrapped.merge_and_unload().eval()(tokens).logits, rtol=1e-3, atol=1e-4)
    assert [name for name, _ in merged.named_parameters() if "lora" in name] == []


@pytest.mark.parametrize("options", [{"dropout": 0.1}], ids=str)
def test_killed_and_resumed_is_bit_identical_and_saves_the_adapter_alone(
    data: Path, base: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    config = {**lora_config(data, base, steps=9), "lora": {**LORA, **options}}
    whole, parted = make_run(tmp_path, config), make_run(tmp_path, config)
    launch(whole, 2)
    group = start(parted, 2)
    group.until(lambda: bool(events(parted, "checkpoint")))
    group.kill()
    launch(parted, 2)
    assert losses(parted) == losses(whole)
    assert equal(weights(parted), weights(whole))
    folder = whole.checkpoints / "step-00000009"
    tensors = sum(tensor.numel() * tensor.element_size() for tensor in weights(whole).values())
    assert sum(path.stat().st_size for path in folder.iterdir()) < tensors + 40_000, "nothing of the base is in it"
    assert all(".lora_" in name for name in weights(whole))
    restored = load_model(parted, merge=False)[0].state_dict()
    assert all(torch.equal(restored[name.removeprefix("model.")], t) for name, t in weights(whole).items() if name[0] == "m")


@pytest.mark.soak("three runs; make test runs test_a_run_begins_with_another_runs_model_and_tokenizer")
def test_a_run_begins_where_an_adapted_run_ended(data: Path, base: Path, tmp_path: Path) -> None:
    first = make_run(tmp_path, {**lora_config(data, base, steps=6, optim={"lr": 3e-2, "warmup_steps": 0}), "lora": LORA})
    launch(first, 1)
    second = make_run(tmp_path, {**pretrain_config(data, steps=2, model={"run": first.id}), "lora": LORA})
    launch(second, 2)
    assert losses(second)[1] < losses(first)[1] - 0.1
    merged, again = load_model(first)[0], load_model(second, 2)[0]
    head = "model.embed_tokens.weight"
    assert torch.equal(merged.state_dict()[head], again.state_dict()[head])
    third = make_run(tmp_path, pretrain_config(data, steps=1, model={"run": first.id}))
    launch(third, 1)
    assert losses(third)[1] == pytest.approx(losses(second)[1], rel=1e-6), "all weights, from the merged model on"


@pytest.mark.soak(
    "four ranks; test_the_loss_of_a_run_is_the_papers has dpo with lora, whose reference is the adapter switched off"
)
def test_the_reference_is_the_adapter_switched_off(data: Path, base: Path, tmp_path: Path) -> None:
    """`reference` of recipes.py asserts on every rank that it equals the base, and that gradients do not notice."""
    config = {**lora_config(data, base, steps=4, optim={"lr": 1e-2, "warmup_steps": 0}), "lora": LORA}
    plain = make_run(tmp_path, config)
    launch(plain, 1)
    run = make_run(tmp_path, {**config, "batch": {"global_batch": 8, "micro_batch": 1}}, "reference")
    launch(run, 3)
    assert list(losses(run).values()) == pytest.approx(list(losses(plain).values()), rel=1e-6)
    results = [line["train/reference"] for line in run.read_metrics() if "train/reference" in line]
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    from ropewalk.datapipe.loader.loader import Source, TokenLoader

    loader = TokenLoader([Source(str(data))], seq_len=32, seed=0)
    for step, value in enumerate(results):
        tokens = torch.from_numpy(loader.read(range(step * 8, step * 8 + 8)))
        with torch.no_grad():
            logits = model(input_ids=tokens[:, :-1]).logits.flatten(0, 1)
        assert value == pytest.approx(torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten()).item(), rel=1e-6)


def test_peft_opens_what_is_saved(base: Path, tmp_path: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    options = LoraConfig(rank=4, dora=True)
    model = lora_adapter(options, 3)(model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    save_adapter(model, LoadedWeights(lambda: model), options, tmp_path / "adapter", base=str(base))
    opened = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path / "adapter")
    tokens = torch.arange(20)[None]
    before = model(tokens).logits
    assert torch.equal(opened(tokens).logits, before)
    with torch.no_grad(), adapter_off(model):
        off = model(tokens).logits
    assert torch.equal(off, AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)(tokens).logits)
    assert not torch.allclose(off, before, atol=1e-3)
    torch.testing.assert_close(merge_adapter(model)(tokens).logits, before, rtol=1e-4, atol=1e-5)


def test_layers_that_are_not_there_are_named(base: Path) -> None:
    with pytest.raises(ConfigError, match=r"lora: Target modules .*nope.* name layers of the model in lora.targets"):
        lora_adapter(LoraConfig(targets=["nope"]), 0)(AutoModelForCausalLM.from_pretrained(base))


def test_the_base_is_needed_again(data: Path, tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base")
    run = make_run(tmp_path, {**lora_config(data, base, steps=2), "lora": LORA})
    launch(run, 1)
    shutil.rmtree(base)
    with pytest.raises((ConfigError, OSError)):
        load_model(run)

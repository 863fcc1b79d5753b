"""The seam between sources, objectives and the loop: next token by the plain formula, packed documents, a frozen teacher."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from ropewalk.cluster.errors import DataError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.datapipe.loader.loader import Source as DataSet
from ropewalk.datapipe.loader.loader import TokenLoader
from ropewalk.jobs.training.finetune.source import pack
from ropewalk.jobs.training.loop.batch import IGNORE
from ropewalk.jobs.training.loop.objective import LossTerms, Means, NextToken, TermSums
from ropewalk.jobs.training.loop.source import TokenSource
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import TINY, equal, events, launch, log_of, losses, pretrain_config, start, weights


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**TINY, vocab_size=257), dtype=torch.float32)


def make_run(root: Path, recipe: str, config: dict[str, Any]) -> RunDir:
    return RunDir.create("test", {"job": "pretrain", "entry": f"tests.jobs.recipes:{recipe}", "config": config}, root)


def gradients(model: Any) -> list[torch.Tensor]:
    results = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    return results


def plain_next_token(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Summed cross entropy in the plain way, its gradient by the same formula: (softmax - one-hot)."""
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits.flatten(0, 1)
    shifted = logits.detach() - logits.detach().amax(1, keepdim=True)
    sums = shifted.exp().sum(1, keepdim=True)
    targets = tokens[:, 1:].flatten()
    gradient = shifted.exp() / sums - F.one_hot(targets, logits.shape[1])
    logits.backward(gradient)
    return (sums[:, 0].log() - shifted.gather(1, targets[:, None])[:, 0]).sum()


def test_next_token_is_the_plain_formula_bit_by_bit(data: Path, model: Any) -> None:
    source = TokenSource(TokenLoader([DataSet(str(data))], seq_len=32, seed=0))
    terms = NextToken()(model, source.read(range(4)))
    terms.loss_sum.backward()
    ours = gradients(model)
    loss = plain_next_token(model, torch.from_numpy(source.loader.read(range(4))))
    assert torch.equal(terms.loss_sum.detach(), loss)
    assert terms.weight == 4 * 32
    assert all(torch.equal(mine, plain) for mine, plain in zip(ours, gradients(model), strict=True))
    torch.testing.assert_close(loss, F.cross_entropy(*logits_and_labels(model, source), reduction="sum"))


def logits_and_labels(model: Any, source: TokenSource) -> tuple[torch.Tensor, torch.Tensor]:
    batch = source.read(range(4))
    return model(input_ids=batch["input_ids"]).logits.detach().flatten(0, 1), batch["labels"].flatten()


def test_a_filler_weighs_nothing(data: Path, model: Any) -> None:
    source = TokenSource(TokenLoader([DataSet(str(data))], seq_len=32, seed=0))
    terms = NextToken()(model, source.filler())
    terms.loss_sum.backward()
    assert (terms.loss_sum.item(), terms.weight.item()) == (0.0, 0)
    assert not any(gradient.any() for gradient in gradients(model))


def documents(*lengths: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    results = []
    for length in lengths:
        tokens = torch.randint(0, 256, (length + 1,), generator=generator)
        labels = tokens[1:].clone()
        labels[: length // 3] = IGNORE
        results.append((tokens[:-1], labels))
    return results


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "mixtral"])
def test_packed_documents_are_learnt_as_if_each_stood_alone(kind: str) -> None:
    from tests.jobs.training.loop.zoo import ZOO

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=257, **ZOO[kind])
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    parts = documents(1, 9, 14, 6)
    alone = [NextToken()(model, pack([part], len(part[0]))) for part in parts]
    sum(terms.loss_sum for terms in alone).backward()
    expected = gradients(model)
    together = NextToken()(model, pack(parts, 40))
    together.loss_sum.backward()
    assert together.weight == sum(terms.weight for terms in alone)
    assert together.loss_sum.item() == pytest.approx(sum(terms.loss_sum.item() for terms in alone), rel=1e-6)
    for mine, theirs in zip(gradients(model), expected, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-6)


def test_no_gradient_crosses_the_border_of_a_document(model: Any) -> None:
    first, second = documents(9, 14)
    silent = (first[0], torch.full_like(first[1], IGNORE))
    observed: list[torch.Tensor] = []

    def remember(module: Any, inputs: Any, output: torch.Tensor) -> None:
        if output.requires_grad:  # it does not in the check of the head
            output.retain_grad()
            observed.append(output)

    model.get_input_embeddings().register_forward_hook(remember)
    NextToken()(model, pack([silent, second, silent], 40)).loss_sum.backward()
    reached = observed[0].grad[0].abs().sum(dim=1) > 0  # type: ignore[index]
    assert reached[9 : 9 + 13].all(), "the last token has no label that it could help with, but all before it do"
    assert not reached[:9].any()
    assert not reached[9 + 14 :].any()


def test_documents_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="of 20 tokens: its documents have 23"):
        pack(documents(9, 14), 20)


@pytest.mark.soak("make test holds packed finetuning on three ranks against plain torch")
def test_packed_training_is_unpacked_training(data: Path, tmp_path: Path) -> None:
    batches = {"unpacked": {"global_batch": 8, "micro_batch": 2}, "packed": {"global_batch": 4, "micro_batch": 1}}
    runs = {
        how: make_run(tmp_path, how, pretrain_config(data, steps=4, batch=batch, seq_len=48, validation={"every_steps": 100}))
        for how, batch in batches.items()
    }
    results = {how: launch(run, ranks) for ranks, (how, run) in zip((1, 3), runs.items(), strict=True)}
    assert losses(runs["packed"]) == pytest.approx(losses(runs["unpacked"]), rel=1e-6)
    assert results["packed"]["tokens"] == results["unpacked"]["tokens"] == 4 * 8 * 48
    ours, theirs = weights(runs["packed"]), weights(runs["unpacked"])
    assert all(torch.allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-6) for name in theirs)


@pytest.mark.soak("make test runs distill on two ranks against its formula, with a sharded teacher")
def test_distillation_from_itself(data: Path, tmp_path: Path) -> None:
    config = pretrain_config(data, steps=4, optim={"eps": 1.0}, batch={"global_batch": 7, "micro_batch": 1})
    plain = RunDir.create(
        "test", {"job": "pretrain", "entry": "ropewalk.jobs.training.pretrain.job:main", "config": config}, tmp_path
    )
    launch(plain, 1)
    elements = sum(tensor.numel() for name, tensor in weights(plain).items() if name.startswith("model."))
    run = make_run(tmp_path, "distill", config)
    results = launch(run, 3)
    lines = [line for line in run.read_metrics() if "train/kl" in line]
    assert len(lines) == 4
    assert all(abs(line["train/kl"]) < 1e-6 for line in lines)
    assert all(line["train/kl"] == pytest.approx(line["train/loss"], abs=1e-12) for line in lines)
    assert all(line["train/agreement"] == 1.0 for line in lines), "fillers are not counted"
    assert abs(results["validation/kl"]) < 1e-6
    assert results["validation/agreement"] == 1.0
    teachers = [json.loads((run.path / f"teacher-{rank}.json").read_text()) for rank in range(3)]
    assert all(teacher["sharded"] and teacher["frozen"] for teacher in teachers)
    assert sum(teacher["elements"] for teacher in teachers) == elements, "each rank holds its shard alone"
    assert weights(run).keys() == weights(plain).keys(), "neither the teacher nor a moment of it is saved"


@pytest.mark.soak("a training of its own; make test runs test_the_loss_of_a_run_is_the_formula_at_any_number_of_ranks")
def test_a_student_learns_from_its_teacher(data: Path, tmp_path: Path) -> None:
    """Away from its teacher by Adam's noise, it does not drift further."""
    run = make_run(tmp_path, "distill", pretrain_config(data, steps=12, optim={"lr": 1e-2, "warmup_steps": 0}))
    launch(run, 2)
    results = [line["train/kl"] for line in run.read_metrics() if "train/kl" in line]
    assert results[0] < 1e-6
    assert results[-1] < max(results) < 1.0


@pytest.mark.soak("five ranks; test_stop_ends_the_run_for_good and test_skip_leaves_the_batch_out have anomalies")
def test_a_batch_without_a_label_is_an_anomaly(data: Path, tmp_path: Path) -> None:
    stopped = make_run(tmp_path, "masked", pretrain_config(data))
    assert start(stopped, 2).wait() == [42, 42]
    assert "step 2 (samples 8..15): no label counts for the loss" in log_of(stopped)
    skipping = make_run(tmp_path, "masked", pretrain_config(data, anomaly={"policy": "skip"}))
    assert launch(skipping, 3)["step"] == 8
    assert sorted(losses(skipping)) == [1, 3, 4, 5, 6, 7, 8]
    assert all(torch.isfinite(tensor).all() for tensor in weights(skipping).values())


def test_a_recipe_may_prepare_each_batch(data: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, "prepared", pretrain_config(data, steps=5))
    launch(run, 2)
    for rank in range(2):
        assert (run.path / f"prepared-{rank}").read_text().split() == ["0", "1", "2", "3", "4"]


@pytest.mark.soak("four runs; make test saves adapters alone")
def test_only_what_is_trained_is_saved_where_the_rest_has_a_name(data: Path, tmp_path: Path) -> None:
    from ropewalk.jobs.training.loop.weights.load_checkpoint import load_model

    base = RunDir.create(
        "test", {"entry": "ropewalk.jobs.training.pretrain.job:main", "config": pretrain_config(data, steps=3)}, tmp_path
    )
    launch(base, 2)
    config = pretrain_config(data, steps=8, model={"run": base.id}, checkpoint={"every_steps": 3})
    whole, parted = (make_run(tmp_path, "adapted", config) for _ in range(2))
    launch(whole, 2)
    names = {name for name in weights(base) if "norm" in name}
    assert weights(whole).keys() == names
    group = start(parted, 1)
    group.until(lambda: bool(events(parted, "checkpoint")))
    (parted.path / "stop-here").touch()
    assert group.wait() in ([85], [0])
    (parted.path / "stop-here").unlink()
    launch(parted, 2)
    assert losses(parted) == pytest.approx(losses(whole), rel=1e-6)
    result, start_of = load_model(whole)[0].state_dict(), load_model(base)[0].state_dict()
    trained = {name.removeprefix("model.") for name in names if name.startswith("model.")}
    assert {name for name in result if not torch.equal(result[name], start_of[name])} == trained
    assert equal({name: result[name] for name in trained}, {name: weights(whole)[f"model.{name}"] for name in trained})


def test_sums_add_up_to_means() -> None:
    sums = TermSums(("a", "b"), torch.device("cpu"))
    for loss, weight, pair in ((6.0, 2, [1.0, 1.0]), (2.0, 6, [2.0, 3.0])):
        metrics = {"a": torch.tensor(pair), "b": torch.zeros(2)}
        sums.add(LossTerms(torch.tensor(loss, requires_grad=True), torch.tensor(weight), metrics))
    assert Means.of(sums.values.tolist(), sums.metric_names) == Means(1.0, 8.0, {"a": 0.75})

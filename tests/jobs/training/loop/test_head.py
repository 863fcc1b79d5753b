"""Losses in chunks of tokens against the formulas on whole logits, for all heads and objectives."""

import copy
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from ropewalk.jobs.training.align.preferences.losses import Answers, dpo
from ropewalk.jobs.training.align.preferences.objective import PairObjective, answer_log_probs
from ropewalk.jobs.training.distill.losses import ENTROPY, IDS, PROBABILITIES, Distillation, Mix
from ropewalk.jobs.training.loop import head
from ropewalk.jobs.training.loop.batch import IGNORE, Batch
from ropewalk.jobs.training.loop.head import each_token, sum_over_tokens
from ropewalk.jobs.training.loop.losses import cross_entropy
from ropewalk.jobs.training.loop.model_keys import LoraConfig
from ropewalk.jobs.training.loop.objective import NextToken, NextTokenZLoss
from ropewalk.jobs.training.loop.tail import Tail, check_once, run_tail, whole_logits_reason
from ropewalk.jobs.training.loop.weights.lora import lora_adapter

V, T = 67, 24
SIZES = {
    **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1},
    **{"max_position_embeddings": 64, "head_dim": 8, "vocab_size": V, "pad_token_id": None},
}
KINDS: dict[str, dict[str, Any]] = {
    "tied": {"model_type": "llama", "tie_word_embeddings": True},
    "untied": {"model_type": "llama", "tie_word_embeddings": False},
    "bias": {"model_type": "phi"},
    "capped": {"model_type": "gemma2", "final_logit_softcapping": 2.0},
    "multiplied": {"model_type": "cohere", "logit_scale": 0.3},
    "divided": {"model_type": "granite", "logits_scaling": 7.0},
    "decoder in a decoder": {"model_type": "opt", "word_embed_proj_dim": 16, "ffn_dim": 32, "dropout": 0.0},
}
ADAPTERS: dict[str, dict[str, Any]] = {"lora": {}, "dora": {"dora": True}, "rslora": {"rslora": True}}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "_CHUNK_TOKENS", 5)  # of 96
    monkeypatch.setattr(head, "_CHUNK_NUMBERS", 5 * V)


def model_of(kind: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    torch.manual_seed(seed)
    config = AutoConfig.for_model(**{**SIZES, **KINDS[kind], **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():  # logits far from equal
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def adapted(kind: str, added_tokens: Sequence[int] = (), **options: Any) -> Any:
    """A model whose head has an adapter that is not zero."""
    config = LoraConfig(**{"rank": 4, "targets": ["q_proj", "lm_head"], **options})
    model = lora_adapter(config, 0, added_tokens)(model_of(kind))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "trainable_tokens" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def batch_of(samples: int = 4, *, masked: bool = True) -> Batch:
    ids = torch.randint(0, V - 7, (samples, T + 1), generator=torch.Generator().manual_seed(1))  # the last 7 rows are fillers
    labels = ids[:, 1:].clone()
    if masked:
        labels[0, :9] = labels[1, 20:] = labels[2, 3] = IGNORE
    return {"input_ids": ids[:, :-1], "labels": labels}


def pairs() -> Batch:
    return {name: values.view(2, 2, T) for name, values in batch_of().items()}


def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits if logits.dtype == torch.float64 else logits.float()


def plain_log_probs(model: Any, batch: Batch) -> torch.Tensor:
    logits_BVT = logits_of(model, batch["input_ids"]).transpose(1, 2)
    return -F.cross_entropy(logits_BVT, batch["labels"], reduction="none", ignore_index=IGNORE)


def plain_next_token(model: Any, batch: Batch) -> torch.Tensor:
    return -plain_log_probs(model, batch).sum()


def loss_and_gradient(model: Any, loss: torch.Tensor, scale: float = 1.5) -> tuple[float, torch.Tensor]:
    """The loss and the gradient of all parameters."""
    (loss * scale).backward()
    parts = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    gradient = torch.cat([part.flatten().double() for part in parts if part is not None])
    assert len(gradient) == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    model.zero_grad()
    return loss.item(), gradient


def check(model: Any, ours: Callable[[], torch.Tensor], plain: Callable[[], torch.Tensor]) -> None:
    """Both losses and their gradients are equal to 1e-6, and logits were computed in chunks."""
    wanted, wanted_gradient = loss_and_gradient(model, plain())
    assert whole_logits_reason(model) is None
    sizes: list[int] = []
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[:-1].numel()))
    loss, gradient = loss_and_gradient(model, ours())
    handle.remove()
    assert max(sizes) <= 23, "no more numbers than the hidden states of 96 tokens"
    assert loss == pytest.approx(wanted, rel=1e-6)
    assert (gradient - wanted_gradient).norm() <= 1e-6 * wanted_gradient.norm()


def test_a_later_group_of_an_attempt_takes_over_the_check() -> None:
    """Also on a rank whose process is new: here rank 0, whose own result is not among those that ranks exchange."""
    group: Any = SimpleNamespace(all_gather_object=lambda value, _: [None, value])
    assert check_once(model_of("tied"), group, "an attempt") is None
    model, calls = model_of("tied"), list[Any]()
    with model.register_forward_pre_hook(lambda *_: calls.append(1)):
        assert check_once(model, group, "an attempt") is None
        assert not calls
        assert check_once(model_of("tied"), group, "another attempt") is None
    check(model, lambda: NextToken()(model, batch_of()).loss_sum, lambda: plain_next_token(model, batch_of()))


@pytest.mark.parametrize("kind", KINDS)
def test_cross_entropy_of_all_heads(kind: str) -> None:
    model, batch = model_of(kind), batch_of()
    check(model, lambda: NextToken()(model, batch).loss_sum, lambda: plain_next_token(model, batch))


@pytest.mark.parametrize("kind", ["tied", "untied", "capped"])
def test_log_probabilities_of_all_heads(kind: str) -> None:
    model, batch = model_of(kind), batch_of()
    check_each(model, batch)


def check_each(model: Any, batch: Batch) -> None:
    """The values of all tokens are equal, and so is the gradient of their sum with any weights."""
    weights = torch.rand(4, T)
    check(
        model,
        lambda: torch.sum(each_token(model, batch, cross_entropy)[0] * weights),
        lambda: -torch.sum(plain_log_probs(model, batch) * weights),
    )


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_adapted_heads(kind: str, adapter: str) -> None:
    model, batch = adapted(kind, **ADAPTERS[adapter]), batch_of()
    check(model, lambda: NextToken()(model, batch).loss_sum, lambda: plain_next_token(model, batch))
    check_each(model, batch)


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_heads_with_trained_rows_of_added_tokens(kind: str) -> None:
    model, batch = adapted(kind, (3, 60), targets="all-linear"), batch_of()
    check(model, lambda: NextToken()(model, batch).loss_sum, lambda: plain_next_token(model, batch))
    check_each(model, batch)


def test_an_adapter_with_a_frozen_head_computes_logits_once() -> None:
    model, batch = lora_adapter(LoraConfig(rank=4, targets=["q_proj"]), 0)(model_of("tied")), batch_of()
    check_each(model, batch)
    (values_BT,) = each_token(model, batch, cross_entropy)
    calls: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda *_: calls.append(1))
    values_BT.sum().backward()
    assert not calls


def test_dropout_of_an_adapted_head_is_drawn_once() -> None:
    model, batch = adapted("untied", dropout=0.5).train(), batch_of()
    assert whole_logits_reason(model) is None
    gradients = []
    for function in (sum_over_tokens, each_token, sum_over_tokens):
        torch.manual_seed(7)
        gradients.append(loss_and_gradient(model, function(model, batch, cross_entropy)[0].sum())[1])
    assert (gradients[0] - gradients[1]).norm() <= 1e-6 * gradients[0].norm(), "logits are computed twice"
    assert torch.equal(gradients[0], gradients[2]), "the first pass draws no more than the others"


def test_dpo() -> None:
    model, batch = model_of("tied"), pairs()
    frozen = copy.deepcopy(model).requires_grad_(False)
    batch["reference"] = answer_log_probs(frozen, batch).sums + 0.5 * torch.randn(2, 2)

    def plain() -> torch.Tensor:
        flat = {name: batch[name].flatten(0, 1) for name in ("input_ids", "labels")}
        sums = plain_log_probs(model, flat).double().sum(1).view(2, 2)
        return dpo(Answers(sums, batch["reference"], torch.ones(2, 2)), beta=0.1).loss.sum()

    objective = PairObjective(lambda answers: dpo(answers, beta=0.1), None, compared=True)
    check(model, lambda: objective(model, batch).loss_sum, plain)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_distillation_of_a_teacher_with_more_fillers(divergence: str, alpha: float) -> None:
    # in fp32 the logarithm of a mean is not exact to 1e-6
    dtype = torch.float64 if divergence == "jensen_shannon" else torch.float32
    model, teacher, batch = (
        model_of("tied", dtype=dtype),
        model_of("capped", seed=1, dtype=dtype, vocab_size=V + 5).requires_grad_(False).eval(),
        batch_of(),
    )
    mix = Mix(divergence, 0.3, 2.0, alpha)

    def plain() -> torch.Tensor:
        counted = batch["labels"] != IGNORE
        student, other = (logits_of(each, batch["input_ids"])[counted][:, :V].double() for each in (model, teacher))
        log_q, log_p = (student / 2.0).log_softmax(-1), (other / 2.0).log_softmax(-1)
        log_m = (0.3 * log_p.exp() + 0.7 * log_q.exp()).log()

        def kl(of: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
            return (of.exp() * (of - to)).sum()

        results = {"forward_kl": kl(log_p, log_q), "reverse_kl": kl(log_q, log_p)}
        results["jensen_shannon"] = 0.3 * kl(log_p, log_m) + 0.7 * kl(log_q, log_m)
        return alpha * plain_next_token(model, batch) + (1 - alpha) * 4.0 * results[divergence]

    check(model, lambda: Distillation(mix, teacher)(model, batch).loss_sum, plain)


def test_distillation_of_cached_logits() -> None:
    model, batch = model_of("untied"), batch_of()
    probabilities = torch.rand(4, T, 3, generator=torch.Generator().manual_seed(3)).softmax(-1)
    ids = torch.randint(0, V - 3, (4, T, 1)) + torch.arange(3)
    sparse = {IDS: ids, PROBABILITIES: probabilities, ENTROPY: -(probabilities * probabilities.log()).sum(-1)}

    def plain() -> torch.Tensor:
        log_q = logits_of(model, batch["input_ids"]).log_softmax(-1).gather(-1, ids)
        terms = (probabilities * (probabilities.log() - log_q)).sum(-1)
        return terms[batch["labels"] != IGNORE].sum()

    check(model, lambda: Distillation(Mix("forward_kl", 0.5, 1.0, 0.0), None)(model, {**batch, **sparse}).loss_sum, plain)


def test_z_loss_in_plain_torch() -> None:
    model, batch = model_of("capped"), batch_of()

    def z_loss(logits_RV: torch.Tensor, tokens: Batch) -> list[torch.Tensor]:
        log_z = logits_RV.logsumexp(-1)
        return [F.cross_entropy(logits_RV, tokens["labels"], reduction="none") + 1e-2 * log_z.square(), log_z]

    def plain() -> torch.Tensor:
        log_z = logits_of(model, batch["input_ids"])[batch["labels"] != IGNORE].logsumexp(-1)
        return plain_next_token(model, batch) + 1e-2 * log_z.square().sum()

    check(model, lambda: sum_over_tokens(model, batch, z_loss)[0], plain)
    with torch.no_grad():
        log_z = logits_of(model, batch["input_ids"])[batch["labels"] != IGNORE].logsumexp(-1).sum()
        torch.testing.assert_close(sum_over_tokens(model, batch, z_loss)[1], log_z)


@pytest.mark.parametrize("kind", ["tied", "capped"])
def test_built_in_z_loss_adds_to_the_gradient_and_not_to_the_loss(kind: str) -> None:
    model, batch = model_of(kind), batch_of()

    def plain() -> torch.Tensor:
        log_z = logits_of(model, batch["input_ids"])[batch["labels"] != IGNORE].logsumexp(-1)
        penalty = 1e-2 * log_z.square().sum()
        return plain_next_token(model, batch) + penalty - penalty.detach()

    check(model, lambda: NextTokenZLoss(1e-2)(model, batch).loss_sum, plain)
    with torch.no_grad():
        loss, weight, metrics = NextTokenZLoss(1e-2)(model, batch)
        assert torch.equal(loss, NextToken()(model, batch).loss_sum)
        log_z = logits_of(model, batch["input_ids"])[batch["labels"] != IGNORE].logsumexp(-1).sum()
        torch.testing.assert_close(metrics["log_z"], torch.stack([log_z, weight]))


@pytest.mark.parametrize(
    "kind",
    [
        "capped",
        *(
            pytest.param(kind, marks=pytest.mark.soak("another head; make test runs a capped one"))
            for kind in ("tied", "untied", "divided")
        ),
    ],
)
def test_bf16_is_no_farther_from_fp64_than_whole_logits(kind: str) -> None:
    errors = {"ours": 0.0, "whole": 0.0}
    for seed in range(24):
        model, batch = model_of(kind, seed=seed, dtype=torch.bfloat16), batch_of(16)
        double = copy.deepcopy(model).double()
        exact, exact_gradient = loss_and_gradient(double, plain_next_token(double, batch), 1.0)
        whole, whole_gradient = loss_and_gradient(model, plain_next_token(model, batch), 1.0)
        ours, our_gradient = loss_and_gradient(model, NextToken()(model, batch).loss_sum, 1.0)
        assert abs(ours - exact) <= abs(whole - exact) + 1e-6 * exact
        errors["ours"] += float((our_gradient - exact_gradient).square().sum())
        errors["whole"] += float((whole_gradient - exact_gradient).square().sum())
    assert errors["ours"] <= 1.002 * errors["whole"], "but for the order of sums"


def test_without_gradients_values_are_equal() -> None:
    model, batch = model_of("capped"), batch_of()
    with torch.no_grad():
        torch.testing.assert_close(NextToken()(model, batch).loss_sum, plain_next_token(model, batch))
        torch.testing.assert_close(-each_token(model, batch, cross_entropy)[0], plain_log_probs(model, batch))


class Shifted(torch.nn.Module):
    """A head whose logits depend on the position of a token."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight

    def forward(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden_BTD, self.weight) + torch.arange(hidden_BTD.shape[1])[:, None]


class Strict(Shifted):
    """A head that takes a certain number of tokens."""

    def forward(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        if hidden_BTD.shape[1] not in {8, T}:
            raise ValueError("not so few")
        return F.linear(hidden_BTD, self.weight)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(Shifted, "computed chunk by chunk, logits differ by"), (Strict, "its head takes no single tokens (not so")],
)
def test_a_head_that_needs_all_tokens_computes_whole_logits(
    kind: type[Shifted], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, batch = model_of("untied"), batch_of()
    model.lm_head = kind(model.lm_head)
    assert (whole_logits_reason(model) or "").startswith(reason)
    assert "LlamaForCausalLM computes whole logits, which takes more memory: " + reason in caplog.text
    wanted, wanted_gradient = loss_and_gradient(model, plain_next_token(model, batch))
    for loss in (NextToken()(model, batch).loss_sum, each_token(model, batch, cross_entropy)[0].sum()):
        ours, gradient = loss_and_gradient(model, loss)
        assert ours == pytest.approx(wanted, rel=1e-6)
        assert (gradient - wanted_gradient).norm() <= 1e-6 * wanted_gradient.norm()


def test_the_tail_is_the_models_own() -> None:
    model, batch = model_of("multiplied"), batch_of()

    def use(hidden_BTD: torch.Tensor, tail: Tail) -> torch.Tensor:
        return torch.stack([tail(hidden_TD) for hidden_TD in hidden_BTD])

    with torch.no_grad():
        torch.testing.assert_close(run_tail(model, batch, use), logits_of(model, batch["input_ids"]))
    assert "forward" not in model.model.__dict__, "the decoder is as before"

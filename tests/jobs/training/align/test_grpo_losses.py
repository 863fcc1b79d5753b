"""Losses and gradients of GRPO and its kin against the papers' formulas, written down in plain torch for one group at a time."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from ropewalk.jobs.training.align.grpo.objective import GroupRelative
from ropewalk.jobs.training.align.grpo.source import Rollout, RolloutSource, advantages, has_no_signal
from ropewalk.jobs.training.align.grpo_config import GrpoConfig
from ropewalk.jobs.training.loop.batch import rows

GROUP, VOCABULARY, LIMIT = 4, 23, 9
NAN = float("nan")


def tiny(seed: int) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def answers(rewards: list[float], config: GrpoConfig, seed: int = 0) -> list[Rollout]:
    """Answers of different lengths, drawn by nobody, with log-probabilities that are off what any model would say."""
    random = np.random.default_rng(seed)
    result = advantages(np.array(rewards), GROUP, config.keys.scale)
    created = []
    for reward, advantage in zip(rewards, result, strict=True):
        prompt, tokens = (
            random.integers(0, VOCABULARY, random.integers(2, 6)),
            random.integers(0, VOCABULARY, random.integers(1, 10)),
        )
        created.append(
            Rollout(
                prompt.tolist(),
                tokens.tolist(),
                (math.log(1 / VOCABULARY) + random.normal(0, 0.4, len(tokens))).tolist(),
                len(tokens) == LIMIT,
                reward,
                [reward],
                float(advantage),
                0,
            )
        )
    return created


def formula(model: Any, reference: Any, cells: list[Rollout], config: GrpoConfig) -> torch.Tensor:
    """The papers' losses, an answer and a token at a time."""
    keys, remaining = config.keys, [cell for cell in cells if not math.isnan(cell.reward)]
    sums, tokens = torch.zeros(()), 0
    for row in remaining:
        if keys.mask_truncated and row.truncated:
            continue
        new, old = log_probs(model, row, config), torch.tensor(row.log_probs)
        ratios = (new - old).exp() if keys.ratio == "token" else (new - old).mean().exp().expand(len(old))
        per_token = []
        for at, ratio in enumerate(ratios):
            free, bounded = ratio * row.advantage, ratio.clamp(1 - keys.clip_low, 1 + keys.clip_high) * row.advantage
            loss = -min(free, bounded)
            if reference is not None:
                gap = log_probs(reference, row, config).detach()[at] - new[at]
                loss = loss + config.kl * (gap.exp() - gap - 1)
            per_token.append(loss)
        total = torch.stack(per_token).sum()
        sums = sums + (total / len(old) if keys.average == "sequence" else total)
        tokens += len(old)
    return sums / {"sequence": len(remaining), "token": tokens, "constant": len(remaining) * config.max_new_tokens}[keys.average]


def log_probs(model: Any, first: Rollout, config: GrpoConfig) -> torch.Tensor:
    ids = torch.tensor([[*first.prompt, *first.tokens]])
    logits = model(input_ids=ids).logits[0, len(first.prompt) - 1 : -1] / config.temperature
    return logits.log_softmax(-1)[torch.arange(len(first.tokens)), torch.tensor(first.tokens)]


VARIANTS: list[dict[str, Any]] = [
    {"variant": "grpo"},
    {"variant": "grpo", "kl": 0.04, "temperature": 0.6},
    {"variant": "grpo", "scale": "batch"},
    {"variant": "dr_grpo"},
    {"variant": "dapo"},
    {"variant": "gspo", "clip_low": 0.1, "clip_high": 0.2},
]


@pytest.mark.parametrize("keys", VARIANTS, ids=lambda keys: "-".join(map(str, keys.values())))
def test_loss_and_gradient_are_those_of_the_paper(keys: dict[str, Any]) -> None:
    config = GrpoConfig(group_size=GROUP, max_new_tokens=LIMIT, **keys)
    model, reference = tiny(0), tiny(1) if config.kl else None
    created = answers([1, 0, 0, 0.5, NAN, 2, 2, 1], config)
    expected = formula(model, reference, created, config)
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    source = RolloutSource(tokens_per_sample=16, num_rewards=1)
    source.put(100, created)
    batch = source.read(range(100, 108))
    objective = GroupRelative(config, None if reference is None else lambda model, compute: compute(reference))
    for micro_batch in (8, 3):
        terms = [objective(model, rows(batch, slice(at, at + micro_batch))) for at in range(0, 8, micro_batch)]
        loss = sum(term.loss_sum for term in terms) / sum(term.weight for term in terms)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        for mine, theirs in zip(torch.autograd.grad(loss, list(model.parameters())), wanted, strict=True):
            assert (mine - theirs).norm() <= 1e-5 * theirs.norm() + 1e-9
        reward = sum(term.metrics["reward"] for term in terms)
        assert (reward[0] / reward[1]).item() == pytest.approx(6.5 / 7)


def test_a_filler_and_answers_that_do_not_count_weigh_nothing_and_have_a_gradient() -> None:
    config = GrpoConfig(group_size=GROUP, max_new_tokens=LIMIT)
    model: nn.Module = tiny(0)
    source = RolloutSource(tokens_per_sample=16, num_rewards=1)
    for batch in (source.filler(), rows(source.filler(), slice(0, 1))):
        terms = GroupRelative(config)(model, batch)
        terms.loss_sum.backward()
        assert (terms.loss_sum.item(), terms.weight.item()) == (0.0, 0)
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


def test_stale_ratios_are_truncated_and_their_raw_values_logged() -> None:
    config = GrpoConfig(group_size=GROUP, max_new_tokens=LIMIT, max_staleness=1, max_ratio=1.5, clip_high=5.0)
    model, created = tiny(0), answers([1, 0, 0, 0], GrpoConfig(group_size=GROUP), seed=3)
    created = [cell._replace(log_probs=[value - 5 for value in cell.log_probs]) for cell in created]
    source = RolloutSource(tokens_per_sample=16, num_rewards=1)
    source.put(0, created)
    terms = GroupRelative(config)(model, source.read(range(4)))
    tokens = sum(len(cell.tokens) for cell in created)
    total, count = terms.metrics["importance_ratio"].tolist()
    assert count == tokens
    assert total / count > 50
    assert terms.loss_sum.item() == pytest.approx(-1.5 * sum(cell.advantage for cell in created), rel=1e-5, abs=1e-5)
    assert not any(gradient.any() for gradient in torch.autograd.grad(terms.loss_sum, list(model.parameters())))


def test_advantages_by_hand() -> None:
    rewards = np.array([1.0, 0.0, 1.0, 0.0, 3.0, 3.0, 3.0, 3.0, NAN, 4.0, 6.0, NAN])
    none = advantages(rewards, GROUP, "none")
    assert none.tolist() == [0.5, -0.5, 0.5, -0.5, 0, 0, 0, 0, 0, -1, 1, 0]
    deviation = np.array([1.0, 0.0, 1.0, 0.0]).std(ddof=1)
    assert advantages(rewards, GROUP, "group")[:4] == pytest.approx(none[:4] / (deviation + 1e-4))
    assert advantages(rewards, GROUP, "group")[9:11] == pytest.approx(np.array([-1, 1]) / (math.sqrt(2) + 1e-4))
    everywhere = rewards[~np.isnan(rewards)].std(ddof=1)
    assert advantages(rewards, GROUP, "batch") == pytest.approx(none / (everywhere + 1e-4))
    assert has_no_signal(rewards, GROUP).tolist() == [False, True, False]
    assert has_no_signal(np.array([NAN, 1.0, NAN, NAN]), GROUP).tolist() == [True]

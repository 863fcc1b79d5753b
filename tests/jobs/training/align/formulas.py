"""The papers' losses in plain torch, of whole models and token ids: one sequence at a time, no padding, no batch."""

from collections.abc import Sequence
from typing import Any

import torch

Ids = Sequence[int]


def log_probs(model: Any, prompt: Ids, answer: Ids) -> torch.Tensor:
    """log p of each token of the answer, [T], in the model's precision."""
    tokens = torch.tensor([[*prompt, *answer]])
    logits = model(tokens, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)]


def pair_losses(method: dict[str, Any], model: Any, reference: Any, rows: Sequence[tuple[Ids, Ids, Ids]]) -> torch.Tensor:
    """The loss of each (prompt, chosen, rejected)."""
    results = []
    for prompt, chosen, rejected in rows:
        w, o = log_probs(model, prompt, chosen), log_probs(model, prompt, rejected)
        with torch.no_grad():
            rw, ro = log_probs(reference, prompt, chosen), log_probs(reference, prompt, rejected)
        results.append(pair_loss(method, w, o, rw, ro))
    return torch.stack(results)


def pair_loss(method: dict[str, Any], w: torch.Tensor, o: torch.Tensor, rw: torch.Tensor, ro: torch.Tensor) -> torch.Tensor:
    """The loss of one pair, from the log-probabilities of the tokens of its answers."""
    name, beta = method.get("method", "dpo"), method.get("beta") or {"simpo": 2.0}.get(method.get("method", "dpo"), 0.1)
    if name == "orpo":
        odds = [p.mean() - torch.log1p(-torch.exp(p.mean())) for p in (w, o)]
        return -w.mean() - beta * torch.log(torch.sigmoid(odds[0] - odds[1]))
    if name == "simpo":
        return -torch.log(torch.sigmoid(beta * w.mean() - beta * o.mean() - method.get("gamma", beta / 2)))
    reduce = torch.mean if method.get("length_normalized") else torch.sum
    ratio = (reduce(w) - reduce(rw)) - (reduce(o) - reduce(ro))
    if name == "ipo":
        return (ratio - 1 / (2 * beta)) ** 2
    right, wrong = -torch.log(torch.sigmoid(beta * ratio)), -torch.log(torch.sigmoid(-beta * ratio))
    e = method.get("label_smoothing", 0.0)
    return ((1 - e) * right - e * wrong) / (1 - 2 * e) if method.get("loss") == "robust" else (1 - e) * right + e * wrong


def kto_losses(
    model: Any, reference: Any, rows: Sequence[tuple[Ids, Ids, bool]], others: Sequence[Ids], beta: float = 0.1
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of each (prompt, answer, desirable), and the KL: each prompt with another's answer, over all of them."""

    def ratio(prompt: Ids, answer: Ids) -> torch.Tensor:
        with torch.no_grad():
            base = log_probs(reference, prompt, answer).sum()
        return log_probs(model, prompt, answer).sum() - base

    with torch.no_grad():
        z = torch.stack([ratio(prompt, other) for (prompt, _, _), other in zip(rows, others, strict=True)]).mean().clamp(min=0)
    losses = []
    for prompt, answer, desirable in rows:
        r = ratio(prompt, answer)
        losses.append(1 - torch.sigmoid(beta * (r - z)) if desirable else 1 - torch.sigmoid(beta * (z - r)))
    return torch.stack(losses), z


def grpo_loss(
    model: Any, reference: Any, rows: Sequence[dict[str, Any]], advantages: Sequence[float], config: Any
) -> tuple[torch.Tensor, float]:
    """The loss of GRPO, Dr.GRPO, DAPO or GSPO by `config`, an answer and a token at a time; and how many ratios were clipped.

    A row has `prompt_ids`, `tokens`, their `log_probs` when they were drawn, and whether it is `truncated`.
    """
    keys, losses, tokens, clipped = config.keys, [], 0, []
    for row, advantage in zip(rows, advantages, strict=True):
        if keys.mask_truncated and row["truncated"]:
            continue
        new = tempered(model, row, config.temperature)
        old = torch.tensor(row["log_probs"], dtype=new.dtype)
        ratios = (new - old).exp() if keys.ratio == "token" else (new - old).mean().exp().expand(len(old))
        results = []
        for at, ratio in enumerate(ratios):
            bounded = ratio.clamp(1 - keys.clip_low, 1 + keys.clip_high)
            used = ratio.clamp(max=config.max_ratio) if config.max_staleness else ratio
            loss = -torch.minimum(used * advantage, bounded * advantage)
            clipped.append(bool(bounded * advantage < used * advantage))
            if reference is not None:
                gap = tempered(reference, row, config.temperature).detach()[at] - new[at]
                loss = loss + config.kl * (gap.exp() - gap - 1)
            results.append(loss)
        losses.append(torch.stack(results).sum() / (len(results) if keys.average == "sequence" else 1))
        tokens += len(results)
    weight = {"sequence": len(rows), "token": tokens, "constant": len(rows) * config.max_new_tokens}[keys.average]
    return torch.stack(losses).sum() / weight, sum(clipped) / len(clipped)


def tempered(model: Any, row: dict[str, Any], temperature: float) -> torch.Tensor:
    """log p of each token of an answer at a temperature, [T]."""
    ids = torch.tensor([[*row["prompt_ids"], *row["tokens"]]])
    logits = model(ids, use_cache=False).logits[0, len(row["prompt_ids"]) - 1 : -1] / temperature
    return logits.log_softmax(-1)[torch.arange(len(row["tokens"])), torch.tensor(row["tokens"])]


def reward_losses(model: Any, rows: Sequence[tuple[Ids, Ids, Ids]]) -> torch.Tensor:
    """Bradley-Terry: -log sigmoid of the difference of the scores of (prompt, chosen) and (prompt, rejected)."""

    def score(prompt: Ids, answer: Ids) -> torch.Tensor:
        result: torch.Tensor = model(torch.tensor([[*prompt, *answer]])).logits[0, 0]
        return result

    return torch.stack([-torch.log(torch.sigmoid(score(p, chosen) - score(p, rejected))) for p, chosen, rejected in rows])

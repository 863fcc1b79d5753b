"""Answers of a causal language model of transformers, a batch at a time, by its cache of keys and values."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from ropewalk.jobs.training.rollouts.sampling import Sampling, choose
from ropewalk.sharding.fsdp import fsdp_modules, reshard_all

# B rollouts, P tokens of a prompt, T tokens of an answer


class Answer(NamedTuple):
    """What was drawn for a prompt: the tokens, the end of turn included, and the log-probability of each."""

    tokens: list[int]
    log_probs: list[float]
    truncated: bool  # the limit of tokens ended it


@torch.no_grad()
def answer_all(
    model: Any, prompts: Sequence[Sequence[int]], uniform_BT: torch.Tensor, ends: frozenset[int], sampling: Sampling
) -> list[Answer]:
    """An answer to each prompt, drawn by its row of numbers in [0, 1); at most as many tokens as there are numbers.

    The same batch gives the same bits. Rows that have ended are computed on, so that the others' bits do not change.
    """
    device = next(model.parameters()).device
    ids_BP, mask_BP = _left_padded(prompts, device)
    positions_BP = (mask_BP.cumsum(-1) - 1).clamp(min=0)
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    end_ids = torch.tensor(sorted(ends), device=device)
    tokens, log_probs = [], []
    state: dict[str, Any] = {"use_cache": True, "logits_to_keep": 1}  # of a prompt's logits only the last are of use
    for uniform_B in uniform_BT.to(device).unbind(1):
        output = model(input_ids=ids_BP, attention_mask=mask_BP, position_ids=positions_BP, **state)
        name = "cache" if "cache" in output else "past_key_values"  # renamed in transformers 5
        state[name] = output[name]
        token_B, log_prob_B = choose(output.logits[:, -1], uniform_B, sampling)
        tokens.append(token_B)
        log_probs.append(log_prob_B)
        ended |= torch.isin(token_B, end_ids)
        if ended.all():
            break
        ids_BP, mask_BP, positions_BP = token_B[:, None], _one_more(mask_BP), positions_BP[:, -1:] + 1
    return list(_cut_at_end(torch.stack(tokens, 1), torch.stack(log_probs, 1), ends))


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(map(len, prompts))
    ids = torch.tensor([[0] * (length - len(one)) + list(one) for one in prompts])
    mask = torch.tensor([[0] * (length - len(one)) + [1] * len(one) for one in prompts])
    return ids.to(device), mask.to(device)


def _one_more(mask_BP: torch.Tensor) -> torch.Tensor:
    return torch.cat((mask_BP, torch.ones_like(mask_BP[:, :1])), dim=1)


def _cut_at_end(tokens_BT: torch.Tensor, log_probs_BT: torch.Tensor, ends: frozenset[int]) -> Iterator[Answer]:
    for tokens, log_probs in zip(tokens_BT.tolist(), log_probs_BT.tolist(), strict=True):
        length = next((at + 1 for at, token in enumerate(tokens) if token in ends), None)
        yield Answer(tokens[:length], log_probs[:length], length is None)


@contextmanager
def gathered(model: nn.Module, *, reshard: bool) -> Iterator[None]:
    """Hold all parameters of a sharded model on every rank while the block runs, in evaluation mode and without dropout.

    They are gathered once: no forward pass inside has a collective, so that ranks may make different numbers of them.
    `reshard` says whether training reshards layers after forward.
    """
    was_training, root = model.training, id(model)
    model.eval()
    try:
        for module in fsdp_modules(model):
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        yield
    finally:
        for module in fsdp_modules(model):
            module.set_reshard_after_forward(reshard and id(module) != root, recurse=False)
        reshard_all(model)
        model.train(was_training)

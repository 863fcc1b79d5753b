"""Batched generation with a causal language model of transformers and its key-value cache."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from ropewalk.jobs.training.rollouts.sampling import Sampling, choose
from ropewalk.sharding.fsdp import fsdp_modules, reshard_all

# B rollouts, P tokens of a prompt, T tokens of an answer


class Answer(NamedTuple):
    """A generated answer: its tokens, with the end of turn, and the log-probability of each."""

    tokens: list[int]
    log_probs: list[float]
    truncated: bool  # ended by the limit of tokens


@torch.no_grad()
def generate_answers(
    model: Any, prompts: Sequence[Sequence[int]], uniform_BT: torch.Tensor, ends: frozenset[int], sampling: Sampling
) -> list[Answer]:
    """Generate an answer to each prompt, sampled by its row of numbers in [0, 1), with at most that many tokens.

    The same batch gives the same bits: rows that have ended are still computed, so that the bits of the others do not change.
    """
    device = next(model.parameters()).device
    ids_BP, mask_BP = _pad_left(prompts, device)
    positions_BP = (mask_BP.cumsum(-1) - 1).clamp(min=0)
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    end_ids = torch.tensor(sorted(ends), device=device)
    tokens, log_probs = [], []
    state: dict[str, Any] = {"use_cache": True, "logits_to_keep": 1}  # only the last logits of a prompt are needed
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
        ids_BP, mask_BP, positions_BP = token_B[:, None], _extend_mask(mask_BP), positions_BP[:, -1:] + 1
    return list(_cut_at_end(torch.stack(tokens, 1), torch.stack(log_probs, 1), ends))


def _pad_left(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(map(len, prompts))
    ids = torch.tensor([[0] * (length - len(tokens)) + list(tokens) for tokens in prompts])
    mask = torch.tensor([[0] * (length - len(tokens)) + [1] * len(tokens) for tokens in prompts])
    return ids.to(device), mask.to(device)


def _extend_mask(mask_BP: torch.Tensor) -> torch.Tensor:
    return torch.cat((mask_BP, torch.ones_like(mask_BP[:, :1])), dim=1)


def _cut_at_end(tokens_BT: torch.Tensor, log_probs_BT: torch.Tensor, ends: frozenset[int]) -> Iterator[Answer]:
    for tokens, log_probs in zip(tokens_BT.tolist(), log_probs_BT.tolist(), strict=True):
        length = next((position + 1 for position, token in enumerate(tokens) if token in ends), None)
        yield Answer(tokens[:length], log_probs[:length], length is None)


@contextmanager
def gather_parameters(model: nn.Module, *, reshard: bool) -> Iterator[None]:
    """Hold all parameters of a sharded model on every rank during the block, in evaluation mode.

    They are gathered once: no forward pass inside has a collective, so that ranks may run different numbers of them.
    `reshard`: training reshards layers after forward.
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

"""Batched generation with a key-value cache, sampled by random numbers that depend on a rollout's identity alone."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from torch import nn

from ropewalk.datapipe.loader.order import hash_words
from ropewalk.sharding.config import ParallelConfig
from ropewalk.sharding.fsdp import fsdp_modules, reshard_all, should_reshard_after_forward
from ropewalk.sharding.group import Group
from ropewalk.sharding.lock_step import LockStep

log = logging.getLogger(__name__)

# B rollouts, P tokens of a prompt, T tokens of an answer, V vocabulary

_SHARE_OF_MEMORY = 0.8  # of a rank's free memory, that a gathered model may take


class Draw(NamedTuple):
    """The identity of a rollout in the run: sample `sample` of the group for prompt slot `slot` at try `attempt`."""

    slot: int  # number of the prompt, counted over the whole run
    attempt: int  # of dynamic sampling: 0, then 1 if that group has no signal
    sample: int


class Sampling(NamedTuple):
    """Parameters of the sampling distribution."""

    temperature: float
    top_p: float = 1.0
    top_k: int | None = None


def uniforms(seed: int, draws: Sequence[Draw], num_tokens: int) -> torch.Tensor:
    """Return numbers in [0, 1), float64 [B, T]: those of a rollout are a function of the seed and its identity alone."""
    numbers = np.empty((len(draws), num_tokens))
    for row, draw in zip(numbers, draws, strict=True):
        key = [int(hash_words(seed, word, *draw)[0]) for word in (0, 1)]
        row[:] = np.random.Generator(np.random.Philox(key=key)).random(num_tokens)
    return torch.from_numpy(numbers)


def choose(logits_BV: torch.Tensor, uniform_B: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose a token of each row by its number; returns it with its log-probability under the tempered distribution.

    The log-probability ignores `top_p` and `top_k`: the ratio of two policies then compares the same distribution, and is 1
    for equal policies. With one of them truncated it would not be.
    """
    log_probs_BV = torch.log_softmax(logits_BV.float() / sampling.temperature, dim=-1)
    weights_BV = _cut(log_probs_BV.double().exp(), sampling)
    sums_BV = weights_BV.cumsum(-1)
    # the first token with a larger cumulative sum: never one of probability 0
    token_B1 = torch.searchsorted(sums_BV, uniform_B.to(sums_BV)[:, None] * sums_BV[:, -1:], right=True)
    token_B1 = token_B1.clamp(max=sums_BV.shape[1] - 1)
    return token_B1[:, 0], log_probs_BV.gather(1, token_B1)[:, 0]


def _cut(probs_BV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Set probabilities outside of the nucleus and of the most likely `top_k` to 0."""
    if sampling.top_p >= 1.0 and sampling.top_k is None:
        return probs_BV
    sorted_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
    out_BV = sorted_BV.cumsum(-1) - sorted_BV >= sampling.top_p  # tokens before it already have this mass
    if sampling.top_k is not None:
        out_BV[:, sampling.top_k :] = True
    return probs_BV.masked_fill(out_BV.scatter(1, order_BV, out_BV), 0.0)


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
        mask_BP = torch.cat((mask_BP, torch.ones_like(mask_BP[:, :1])), dim=1)
        ids_BP, positions_BP = token_B[:, None], positions_BP[:, -1:] + 1
    return list(_cut_at_end(torch.stack(tokens, 1), torch.stack(log_probs, 1), ends))


def _pad_left(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(map(len, prompts))
    ids = torch.tensor([[0] * (length - len(tokens)) + list(tokens) for tokens in prompts])
    mask = torch.tensor([[0] * (length - len(tokens)) + [1] * len(tokens) for tokens in prompts])
    return ids.to(device), mask.to(device)


def _cut_at_end(tokens_BT: torch.Tensor, log_probs_BT: torch.Tensor, ends: frozenset[int]) -> Iterator[Answer]:
    for tokens, log_probs in zip(tokens_BT.tolist(), log_probs_BT.tolist(), strict=True):
        length = next((position + 1 for position, token in enumerate(tokens) if token in ends), None)
        yield Answer(tokens[:length], log_probs[:length], length is None)


@contextmanager
def ready_to_generate(model: nn.Module, group: Group, parallel: ParallelConfig) -> Iterator[None]:
    """Let each rank call a sharded model as often as it needs during the block, in evaluation mode.

    All parameters are gathered once, so that no forward pass has a collective. If training reshards layers, and all of them
    do not fit into the memory of each rank, each forward pass gathers one layer after the other, and the ranks are in lock step.
    The group has no other collective in the block.
    """
    reshards, was_training = should_reshard_after_forward(model, parallel, group.device), model.training
    model.eval()
    try:
        if reshards and group.any(not _fits(model, group.device)):
            _say_once()
            lock_step = LockStep(model, group)
            yield
            lock_step.end()
        else:
            with _gathered(model, reshards):
                yield
    finally:
        reshard_all(model)
        model.train(was_training)


@cache
def _say_once() -> None:
    log.warning("the model does not fit into the memory of a rank: to generate, its layers are gathered for every token")


@contextmanager
def _gathered(model: nn.Module, reshards: bool) -> Iterator[None]:
    root = id(model)
    try:
        for module in fsdp_modules(model):
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        yield
    finally:
        for module in fsdp_modules(model):
            module.set_reshard_after_forward(reshards and id(module) != root, recurse=False)


def _fits(model: nn.Module, device: torch.device) -> bool:
    """Return True if all parameters, gathered, fit into the free memory of a rank with room for its cache of keys and values."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # free, but held by torch
        free, item = int(torch.cuda.mem_get_info(device)[0]) + cached, torch.bfloat16.itemsize
    else:
        free, item = psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.float32.itemsize
    return sum(parameter.numel() for parameter in model.parameters()) * item <= _SHARE_OF_MEMORY * free

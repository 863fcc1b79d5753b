"""Functions of a model's logits, computed in chunks of tokens: at most one chunk of logits exists at a time.

The decoder runs once. All that follows it (head, adapter, scale, cap, cast) is the model's own forward, called for each chunk
with the decoder replaced by that chunk of its output. This happens inside the model's call, where FSDP has gathered the head.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from ropewalk.jobs.training.loop.batch import IGNORE, Batch
from ropewalk.jobs.training.loop.gradient_sums import GradientSums
from ropewalk.jobs.training.loop.tail import Tail, run_tail, tail_parameters

# B samples, T tokens a sample, N tokens that count, R tokens of a chunk, D hidden size, V vocabulary

# (logits [R, V], which it may overwrite; values of these tokens by name) → values [R], of which the first has a gradient.
# With an attribute `divided` that is true it takes a DTensor of logits that are divided by columns.
TokenFunction = Callable[[torch.Tensor, Batch], Sequence[torch.Tensor]]

_CHUNK_TOKENS = 256  # at least; fewer spend their time on reading the head and its gradient once a chunk
_CHUNK_NUMBERS = 1 << 24  # logits, if these are more tokens; more if there are more numbers in the hidden states


def sum_over_tokens(model: nn.Module, batch: Batch, function: TokenFunction, **tokens: torch.Tensor) -> list[torch.Tensor]:
    """Sum each value of a function of the logits over all tokens that have a label; the first sum has a gradient.

    The function gets the logits of a chunk, and by name its `labels` (0 where they do not count) and its part of `tokens`, each
    [B, T, ...]. The gradient is computed in the forward pass.
    """
    rows = _Rows.of(batch["labels"], tokens, all_tokens=_reading_waits(batch["labels"]))

    def use(hidden_BTD: torch.Tensor, tail: Tail) -> list[torch.Tensor]:
        hidden_ND, chunks = rows.select(hidden_BTD.flatten(0, 1)), _Chunks(tail, function, rows)
        if torch.is_grad_enabled():
            return list(_Sum.apply(hidden_ND, chunks, *tail_parameters(model, tail, hidden_ND)))  # type: ignore[no-untyped-call]
        return [values_N.sum() for values_N in chunks.compute(hidden_ND).values]

    return run_tail(model, batch, use)


def each_token(model: nn.Module, batch: Batch, function: TokenFunction, **tokens: torch.Tensor) -> list[torch.Tensor]:
    """Return each value of a function of the logits for every token, [B, T], 0 where no label counts; the first has a gradient.

    The arguments are those of `sum_over_tokens`. If the head is trained, backward computes the logits again.
    """
    labels_BT = batch["labels"]
    rows = _Rows.of(labels_BT, tokens, all_tokens=False)

    def use(hidden_BTD: torch.Tensor, tail: Tail) -> list[torch.Tensor]:
        hidden_ND, chunks = rows.select(hidden_BTD.flatten(0, 1)), _Chunks(tail, function, rows)
        if torch.is_grad_enabled():
            values = _Each.apply(hidden_ND, chunks, *tail_parameters(model, tail, hidden_ND))  # type: ignore[no-untyped-call]
        else:
            values = chunks.compute(hidden_ND).values
        return [rows.spread(values_N).view(labels_BT.shape) for values_N in values]

    return run_tail(model, batch, use)


def _reading_waits(tensor: torch.Tensor) -> bool:
    """Return True if the host has to wait for a device to read a value of this tensor."""
    return tensor.device.type != "cpu"


@dataclass(frozen=True)
class _Rows:
    """The tokens of a batch whose logits are computed."""

    index: torch.Tensor | None  # into all B * T tokens; None: all of them
    counted: torch.Tensor  # [N], False where the label does not count
    tokens: Batch  # [N, ...]
    size: int  # B * T

    @classmethod
    def of(cls, labels_BT: torch.Tensor, tokens: Batch, *, all_tokens: bool) -> "_Rows":
        labels = labels_BT.flatten()
        counted = labels != IGNORE
        values = {"labels": labels.masked_fill(~counted, 0), **{name: each.flatten(0, 1) for name, each in tokens.items()}}
        if all_tokens or bool(counted.all()):
            return cls(None, counted, values, len(labels))
        # one token at least, so that the head is part of every backward pass
        index = counted.nonzero()[:, 0] if bool(counted.any()) else torch.zeros(1, dtype=torch.int64, device=labels.device)
        return cls(index, counted[index], {name: each[index] for name, each in values.items()}, len(labels))

    def select(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        return hidden_ND if self.index is None else hidden_ND.index_select(0, self.index)

    def spread(self, values_N: torch.Tensor) -> torch.Tensor:
        """Return the values of all B * T tokens."""
        return values_N if self.index is None else values_N.new_zeros(self.size).index_copy(0, self.index, values_N)


class _Results(NamedTuple):
    """Values of all tokens, and the gradients of their weighted sum."""

    values: list[torch.Tensor]  # each [N]
    hidden: torch.Tensor | None = None  # [N, D]
    parameters: Sequence[torch.Tensor | None] = ()


@dataclass(frozen=True)
class _Chunks:
    """A function of the logits of tokens, chunk by chunk."""

    tail: Tail
    function: TokenFunction
    rows: _Rows

    def compute(
        self, hidden_ND: torch.Tensor, parameters: Sequence[torch.Tensor] = (), weights_N: torch.Tensor | None = None
    ) -> _Results:
        """Compute the values; with `weights_N`, also the gradients of the first ones' weighted sum."""
        parts = list(self._parts(hidden_ND))
        if weights_N is None:
            chunks = [self._values(hidden_ND[part], part) for part in parts]
            return _Results([torch.cat(each) for each in zip(*chunks, strict=True)])
        chunks, gradient_ND, sums = [], torch.empty_like(hidden_ND), GradientSums(parameters)
        for part in parts:
            hidden_RD = hidden_ND[part].detach().requires_grad_()
            with torch.enable_grad(), sums:
                values = self._values(hidden_RD, part)
            weights_R = weights_N[part].to(values[0].dtype)
            gradient_ND[part], *others = torch.autograd.grad(values[0], [hidden_RD, *parameters], weights_R, allow_unused=True)
            sums.add(others)
            chunks.append([each.detach() for each in values])
        return _Results([torch.cat(each) for each in zip(*chunks, strict=True)], gradient_ND, sums.totals())

    def _parts(self, hidden_ND: torch.Tensor) -> Iterator[slice]:
        num_tokens = len(hidden_ND)
        most = max(_CHUNK_TOKENS, max(_CHUNK_NUMBERS, hidden_ND.numel()) // self.tail.vocabulary)
        size = math.ceil(num_tokens / math.ceil(num_tokens / most))  # equal parts
        for start in range(0, num_tokens, size):
            yield slice(start, start + size)

    def _values(self, hidden_RD: torch.Tensor, part: slice) -> list[torch.Tensor]:
        compute = self.tail.divided if getattr(self.function, "divided", False) else self.tail
        values = self.function(compute(hidden_RD), {name: each[part] for name, each in self.rows.tokens.items()})
        return [values_R.where(self.rows.counted[part], 0.0) for values_R in values]


class _Sum(torch.autograd.Function):
    """Sums of values, with the gradient of the first computed in forward."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: torch.Tensor, chunks: _Chunks, *parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results = chunks.compute(hidden_ND, parameters, chunks.rows.counted)
        ctx.gradients = [results.hidden, *results.parameters]
        first, *others = (values_N.sum() for values_N in results.values)
        ctx.mark_non_differentiable(*others)
        return (first, *others)

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        # nearly always one, since the step divides by the global weight later
        if _reading_waits(scale) or scale != 1.0:
            gradients = [each if each is None else each.mul_(scale) for each in gradients]
        return gradients[0], None, *gradients[1:]


class _Each(torch.autograd.Function):
    """Values of all tokens. The weights of the gradient are known in backward, where a trained head computes logits again."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: torch.Tensor, chunks: _Chunks, *parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.chunks, ctx.gradient_ND = chunks, None
        if parameters:
            ctx.random = _random_state(hidden_ND.device)
            ctx.save_for_backward(hidden_ND, *parameters)
            results = chunks.compute(hidden_ND)
        else:
            results = chunks.compute(hidden_ND, (), chunks.rows.counted)
            ctx.gradient_ND = results.hidden
        ctx.mark_non_differentiable(*results.values[1:])
        return tuple(results.values)

    @staticmethod
    def backward(ctx: Any, weights_N: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradient_ND is not None:
            return ctx.gradient_ND * weights_N[:, None].to(ctx.gradient_ND.dtype), None
        hidden_ND, *parameters = ctx.saved_tensors
        with torch.random.fork_rng([hidden_ND.device] if hidden_ND.is_cuda else []):
            _set_random_state(hidden_ND.device, ctx.random)  # so that an adapter drops out the same as in forward
            results = ctx.chunks.compute(hidden_ND, parameters, weights_N * ctx.chunks.rows.counted)
        return results.hidden, None, *results.parameters


def _random_state(device: torch.device) -> torch.Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(device: torch.device, state: torch.Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)

"""Statistics of layers, channels and heads on calibration text, and scores of them by the formulas of papers."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ropewalk.datapipe.loader.loader import Source, TokenLoader
from ropewalk.jobs.training.loop.token_data import Data, weighted
from ropewalk.jobs.training.pruning.architecture import Shape

# B sequences, T tokens, H heads, D dims of a head, C channels, E hidden size, L layers


def block_influence(before_BTE: torch.Tensor, after_BTE: torch.Tensor) -> torch.Tensor:
    """Sum 1 - cos(x, y) of a layer's input and output over tokens; the mean is ShortGPT's Block Influence (2403.03853)."""
    before, after = before_BTE.double(), after_BTE.double()
    cosine_BT = (before * after).sum(-1) / (before.norm(dim=-1) * after.norm(dim=-1)).clamp(min=torch.finfo(torch.float64).tiny)
    summed: torch.Tensor = (1.0 - cosine_BT).sum()
    return summed


def channel_activation(values_BTC: torch.Tensor) -> torch.Tensor:
    """Return the squared mean over tokens of |activation|, summed over sequences, [C].

    Its root is Minitron's importance of a channel with the aggregation (batch: L2, sequence: mean) (2407.14679).
    """
    return values_BTC.double().abs().mean(1).square().sum(0)


def head_activation(outputs_BTHD: torch.Tensor) -> torch.Tensor:
    """Return the squared mean over tokens of a head's output norm, summed over sequences, [H].

    Its root is Minitron's importance of a head, of its output before the output projection (2407.14679).
    """
    norms_BTH: torch.Tensor = outputs_BTHD.double().norm(dim=-1)
    return norms_BTH.mean(1).square().sum(0)


def weight_magnitude(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the L2 norm of all weights of a channel: `weights` have the channels as rows, [C]."""
    squares = torch.stack([weight.double().square().sum(1) for weight in weights])
    norms: torch.Tensor = squares.sum(0).sqrt()
    return norms


def random_score(count: int, seed: int, layer: int) -> torch.Tensor:
    """Return random scores, [count]: a baseline for the others."""
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed * 1_000_003 + layer))


def highest(scores_C: torch.Tensor, keep: int) -> torch.Tensor:
    """Return the indices of the `keep` highest scores, ascending; of equal scores the first."""
    order = torch.sort(scores_C, descending=True, stable=True).indices
    return order[:keep].sort().values


@dataclass
class Activations:
    """Sums over the calibration text, float64."""

    influence: torch.Tensor  # [L], summed 1 - cos over tokens
    width: torch.Tensor  # [L, C]
    heads: torch.Tensor  # [L, H]
    hidden: torch.Tensor  # [E], summed over all norms of all layers
    tokens: int = 0

    @classmethod
    def nothing(cls, shape: Shape) -> "Activations":
        layers = shape.layers
        return cls(
            influence=torch.zeros(layers, dtype=torch.float64),
            width=torch.zeros(layers, shape.width, dtype=torch.float64),
            heads=torch.zeros(layers, shape.heads, dtype=torch.float64),
            hidden=torch.zeros(shape.hidden, dtype=torch.float64),
        )


def calibration_batches(
    data: Data, *, seq_len: int, sequences: int, seed: int = 0, micro_batch: int = 4, split: str = "train"
) -> Iterator[torch.Tensor]:
    """Yield token ids [B, seq_len] of sequences 0 .. sequences - 1 of the shuffled split, at most `micro_batch` at once.

    The k-th sequence is a function of (seed, k), whatever their number.
    """
    sources = [Source(data_set.path, data_set.weight) for data_set in weighted(data)]
    loader = TokenLoader(sources, seq_len=seq_len, seed=seed, split=split)
    for start in range(0, sequences, micro_batch):
        positions = range(start, min(start + micro_batch, sequences))
        yield torch.from_numpy(loader.read(positions))[:, :-1]


@torch.no_grad()
def collect(model: Any, batches: Iterable[torch.Tensor]) -> Activations:
    """Run the model on the batches, [B, T] token ids each, and sum up the statistics of each part.

    `model` is unsharded, in evaluation mode. Raises ConfigError for an unsupported architecture.
    """
    shape = Shape.of(model.config)
    sums = Activations.nothing(shape)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    with _watch(model, shape, sums):
        for input_ids in batches:
            model.model(input_ids=input_ids.to(device), use_cache=False)  # without the head: logits are not needed
            sums.tokens += input_ids.numel()
    model.train(was_training)
    return sums


@contextmanager
def _watch(model: Any, shape: Shape, sums: Activations) -> Iterator[None]:
    handles = []
    try:
        for number, layer in enumerate(model.model.layers):
            handles += _watch_layer(number, layer, shape, sums)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _watch_layer(number: int, layer: Any, shape: Shape, sums: Activations) -> list[Any]:
    def whole(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        sums.influence[number] += block_influence(before, after).cpu()

    def norm(module: Any, args: Any, output: torch.Tensor) -> None:
        sums.hidden.add_(channel_activation(output).cpu())

    def mlp(module: Any, args: Any) -> None:
        sums.width[number] += channel_activation(args[0]).cpu()

    def attention(module: Any, args: Any) -> None:
        outputs_BTHD = args[0].unflatten(-1, (shape.heads, shape.head_dim))
        sums.heads[number] += head_activation(outputs_BTHD).cpu()

    return [
        layer.register_forward_hook(whole, with_kwargs=True),
        layer.input_layernorm.register_forward_hook(norm),
        layer.post_attention_layernorm.register_forward_hook(norm),
        layer.mlp.down_proj.register_forward_pre_hook(mlp),
        layer.self_attn.o_proj.register_forward_pre_hook(attention),
    ]

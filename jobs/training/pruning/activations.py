"""Statistics of layers, channels and heads on calibration text, and scores of them by the formulas of papers."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from ropewalk.datapipe.loader.loader import Source, TokenLoader
from ropewalk.jobs.training.loop.architecture.bare_model import skeleton
from ropewalk.jobs.training.loop.token_data import Data, weighted
from ropewalk.jobs.training.loop.weights.weight_reader import WeightReader, for_ranks, set_values
from ropewalk.jobs.training.pruning.architecture import Shape
from ropewalk.sharding.config import ParallelConfig, PrecisionConfig
from ropewalk.sharding.group import Group
from ropewalk.sharding.parallelize import parallelize

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
    order = torch.sort(scores_C.cpu(), descending=True, stable=True).indices
    return order[:keep].sort().values


class Activations:
    """Sums over the calibration text, float64: views of one vector."""

    def __init__(self, shape: Shape, device: torch.device | str = "cpu") -> None:
        layers = shape.layers
        sizes = [layers, layers * shape.width, layers * shape.heads, shape.hidden]
        self.sums = torch.zeros(sum(sizes), dtype=torch.float64, device=device)
        influence, width, heads, hidden = torch.split(self.sums, sizes)
        self.influence: torch.Tensor = influence  # [L], summed 1 - cos over tokens
        self.width: torch.Tensor = width.view(layers, shape.width)  # [L, C]
        self.heads: torch.Tensor = heads.view(layers, shape.heads)  # [L, H]
        self.hidden: torch.Tensor = hidden  # [E], summed over all norms of all layers
        self.tokens = 0


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
def collect(model: Any, batches: Iterable[torch.Tensor], group: Group | None = None) -> Activations:
    """Run the model on the batches, [B, T] token ids each, and sum up the statistics of each part.

    `model` may be sharded over the ranks of a group: each runs its share of the batches. The sums are the same bits for any
    number of ranks. Raises ConfigError for an unsupported architecture.
    """
    shape = Shape.of(model.config)
    device = next(model.parameters()).device
    result, batches = Activations(shape, device), list(batches)
    rank, ranks = (group.rank, group.world_size) if group is not None else (0, 1)
    was_training = model.training
    model.eval()
    for first in range(0, len(batches), ranks):
        mine = batches[min(first + rank, len(batches) - 1)]  # a rank without one repeats the last: all gather the same layers
        part = Activations(shape, device)
        with _watch(model, shape, part):
            model(input_ids=mine.to(device), use_cache=False, logits_to_keep=1)
        for owner, tokens in enumerate(batches[first : first + ranks]):
            sums = part.sums if owner == rank else torch.empty_like(part.sums)
            if ranks > 1:
                dist.broadcast(sums, src=owner)
            result.sums += sums
            result.tokens += tokens.numel()
    model.train(was_training)
    return result


def collect_on_ranks(config: Any, reader: WeightReader, group: Group, batches: Iterable[torch.Tensor]) -> Activations:
    """Sum up the statistics of a model whose weights are divided among the ranks, in fp32."""
    model = parallelize(
        skeleton(config), group, ParallelConfig(reshard="always"), PrecisionConfig(compute="fp32"), trainable=False
    )
    set_values(model, for_ranks(reader, group))
    return collect(model, batches, group)


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
        sums.influence[number] += block_influence(before, after)

    def norm(module: Any, args: Any, output: torch.Tensor) -> None:
        sums.hidden.add_(channel_activation(output))

    def mlp(module: Any, args: Any) -> None:
        sums.width[number] += channel_activation(args[0])

    def attention(module: Any, args: Any) -> None:
        outputs_BTHD = args[0].unflatten(-1, (shape.heads, shape.head_dim))
        sums.heads[number] += head_activation(outputs_BTHD)

    return [
        layer.register_forward_hook(whole, with_kwargs=True),
        layer.input_layernorm.register_forward_hook(norm),
        layer.post_attention_layernorm.register_forward_hook(norm),
        layer.mlp.down_proj.register_forward_pre_hook(mlp),
        layer.self_attn.o_proj.register_forward_pre_hook(attention),
    ]

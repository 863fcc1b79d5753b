"""Choice of the layers, channels and heads to keep, by the configured scores."""

from dataclasses import dataclass
from typing import Any

import torch

from ropewalk.jobs.training.loop.architecture.sharing import LAYERS
from ropewalk.jobs.training.loop.weights.weight_reader import WeightReader
from ropewalk.jobs.training.pruning.activations import Activations, highest, random_score, weight_magnitude
from ropewalk.jobs.training.pruning.architecture import Shape
from ropewalk.jobs.training.pruning.config import PruneConfig

_EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The indices to keep, ascending; of a layer by its number in the original model."""

    layers: list[int]
    width: list[torch.Tensor]
    heads: list[torch.Tensor]
    kv_heads: list[torch.Tensor]
    hidden: torch.Tensor


def choose(config: Any, reader: WeightReader, prune: PruneConfig, activations: Activations | None) -> Choice:
    """Choose the parts of a model to keep; `activations` may be None if no score needs them. Raises ConfigError."""
    assert activations is not None or not prune.needs_text, "calibrate first"
    whole = Shape.of(config)
    chooser = _Chooser(reader=reader, prune=prune, activations=activations, whole=whole, smaller=whole.cut(prune))
    heads = [chooser.heads(number) for number in range(whole.layers)]
    return Choice(
        layers=chooser.layers(),
        width=[chooser.width(number) for number in range(whole.layers)],
        heads=[of_queries for of_queries, _ in heads],
        kv_heads=[groups for _, groups in heads],
        hidden=chooser.hidden(),
    )


@dataclass(frozen=True, kw_only=True)
class _Chooser:
    reader: WeightReader
    prune: PruneConfig
    activations: Activations | None
    whole: Shape
    smaller: Shape

    @property
    def collected(self) -> Activations:
        assert self.activations is not None
        return self.activations

    def layers(self) -> list[int]:
        total, keep = self.whole.layers, self.smaller.layers
        if keep == total:
            return list(range(total))
        if self.prune.layers_by == "last":  # keep the final layer, which produces the predictions
            return [*range(keep - 1), total - 1]
        by_chance = self.prune.layers_by == "random"
        scores = random_score(total, self.prune.seed, -1) if by_chance else self.collected.influence
        chosen: list[int] = highest(scores, keep).tolist()
        return chosen

    def width(self, number: int) -> torch.Tensor:
        if self.smaller.width == self.whole.width:
            return torch.arange(self.whole.width)
        if self.prune.channels_by == "random":
            return highest(random_score(self.whole.width, self.prune.seed, 3 * number), self.smaller.width)
        if self.prune.channels_by == "magnitude":
            gate, up, down = (self._read(number, f"mlp.{part}_proj") for part in ("gate", "up", "down"))
            return highest(weight_magnitude([gate, up, down.T]), self.smaller.width)
        return highest(self.collected.width[number], self.smaller.width)

    def heads(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the heads and the KV groups of a layer to keep: the best groups, and the best heads of each."""
        whole, smaller = self.whole, self.smaller
        if (smaller.heads, smaller.kv_heads) == (whole.heads, whole.kv_heads):
            return torch.arange(whole.heads), torch.arange(whole.kv_heads)
        scores_GQ = self._head_scores(number).reshape(whole.kv_heads, -1)
        groups = highest(scores_GQ.sum(1), smaller.kv_heads)
        size, smaller_size = whole.heads // whole.kv_heads, smaller.heads // smaller.kv_heads
        heads = torch.cat([highest(scores_GQ[group], smaller_size) + group * size for group in groups.tolist()])
        return heads, groups

    def _head_scores(self, number: int) -> torch.Tensor:
        if self.prune.channels_by == "random":
            return random_score(self.whole.heads, self.prune.seed, 3 * number + 1)
        if self.prune.channels_by == "magnitude":
            weights = [self._read(number, "self_attn.q_proj"), self._read(number, "self_attn.o_proj").T]
            return weight_magnitude([weight.reshape(self.whole.heads, -1) for weight in weights])
        return self.collected.heads[number].sqrt()

    def hidden(self) -> torch.Tensor:
        if self.smaller.hidden == self.whole.hidden:
            return torch.arange(self.whole.hidden)
        if self.prune.channels_by == "random":
            return highest(random_score(self.whole.hidden, self.prune.seed, 2), self.smaller.hidden)
        if self.prune.channels_by == "magnitude":
            return highest(weight_magnitude([self.reader.read(_EMBEDDING).T]), self.smaller.hidden)
        return highest(self.collected.hidden, self.smaller.hidden)

    def _read(self, number: int, projection: str) -> torch.Tensor:
        return self.reader.read(f"{LAYERS}{number}.{projection}.weight")

"""Which layers, channels and heads stay, by the scores that a configuration asks for."""

from dataclasses import dataclass
from typing import Any

import torch

from ropewalk.jobs.training.pruning.activations import Activations
from ropewalk.jobs.training.pruning.architecture import Shape
from ropewalk.jobs.training.pruning.config import PruneConfig
from ropewalk.jobs.training.pruning.scores import highest, random_score, weight_magnitude


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The places that stay, each list rising; those of a layer by its number in the uncut model."""

    layers: list[int]
    width: list[torch.Tensor]
    heads: list[torch.Tensor]
    kv_heads: list[torch.Tensor]
    hidden: torch.Tensor


def choose(model: Any, prune: PruneConfig, found: Activations | None) -> Choice:
    """What stays of a model; `found` may be None where no score is taken of activations. Raises ConfigError."""
    assert found is not None or not prune.needs_text, "calibrate first"
    whole = Shape.of(model.config)
    chooser = _Chooser(model=model, prune=prune, found=found, whole=whole, kept=whole.cut(prune))
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
    model: Any
    prune: PruneConfig
    found: Activations | None
    whole: Shape
    kept: Shape

    @property
    def seen(self) -> Activations:
        assert self.found is not None
        return self.found

    def layers(self) -> list[int]:
        """The numbers of the layers that stay."""
        total, keep = self.whole.layers, self.kept.layers
        if keep == total:
            return list(range(total))
        if self.prune.layers_by == "last":  # the final layer stays: it turns hidden states into predictions
            return [*range(keep - 1), total - 1]
        by_chance = self.prune.layers_by == "random"
        scores = random_score(total, self.prune.seed, -1) if by_chance else self.seen.influence
        chosen: list[int] = highest(scores, keep).tolist()
        return chosen

    def width(self, number: int) -> torch.Tensor:
        """The channels of a layer's MLP that stay."""
        if self.kept.width == self.whole.width:
            return torch.arange(self.whole.width)
        if self.prune.channels_by == "random":
            return highest(random_score(self.whole.width, self.prune.seed, 3 * number), self.kept.width)
        if self.prune.channels_by == "magnitude":
            mlp = self.model.model.layers[number].mlp
            weights = [mlp.gate_proj.weight.detach(), mlp.up_proj.weight.detach(), mlp.down_proj.weight.detach().T]
            return highest(weight_magnitude(weights).cpu(), self.kept.width)
        return highest(self.seen.width[number], self.kept.width)

    def heads(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The heads and the KV groups of a layer that stay: the best groups, and of each its best heads."""
        whole, kept = self.whole, self.kept
        if (kept.heads, kept.kv_heads) == (whole.heads, whole.kv_heads):
            return torch.arange(whole.heads), torch.arange(whole.kv_heads)
        scores_GQ = self._head_scores(number).reshape(whole.kv_heads, -1)
        groups = highest(scores_GQ.sum(1), kept.kv_heads)
        size, kept_size = whole.heads // whole.kv_heads, kept.heads // kept.kv_heads
        heads = torch.cat([highest(scores_GQ[group], kept_size) + group * size for group in groups.tolist()])
        return heads, groups

    def _head_scores(self, number: int) -> torch.Tensor:
        if self.prune.channels_by == "random":
            return random_score(self.whole.heads, self.prune.seed, 3 * number + 1)
        if self.prune.channels_by == "magnitude":
            attention = self.model.model.layers[number].self_attn
            weights = [attention.q_proj.weight.detach(), attention.o_proj.weight.detach().T]
            return weight_magnitude([weight.reshape(self.whole.heads, -1) for weight in weights]).cpu()
        return self.seen.heads[number].sqrt()

    def hidden(self) -> torch.Tensor:
        """The channels of the hidden state that stay."""
        if self.kept.hidden == self.whole.hidden:
            return torch.arange(self.whole.hidden)
        if self.prune.channels_by == "random":
            return highest(random_score(self.whole.hidden, self.prune.seed, 2), self.kept.hidden)
        if self.prune.channels_by == "magnitude":
            return highest(weight_magnitude([self.model.model.embed_tokens.weight.detach().T]).cpu(), self.kept.hidden)
        return highest(self.seen.hidden, self.kept.hidden)

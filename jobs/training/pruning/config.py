"""Keys of pruning: the parts to keep, and the scores that select them."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ropewalk.cluster.section import Section
from ropewalk.jobs.training.loop.token_data import Data

Part = int | float  # number or fraction to keep

LayerScore = Literal["block_influence", "last", "random"]
ChannelScore = Literal["activation", "magnitude", "random"]


class CalibrationConfig(Section):
    """The calibration text for activation scores: sample k of the data set, shuffled by the seed."""

    data: Data | None = Field(default=None, description="a data set made by preprocess; unset: the job's own data")
    sequences: int = Field(default=64, ge=1, description="number of sequences")
    seq_len: int | None = Field(default=None, ge=2, description="tokens per sequence; unset: the job's")
    seed: int = Field(default=0, ge=0, lt=2**32, description="random seed of their selection")
    micro_batch: int = Field(default=4, ge=1, description="sequences per forward pass")


class PruneConfig(Section):
    """The parts of a model to keep. An integer is a count, a fraction (0.75, or 1.0 for all) a share."""

    layers: Part | None = Field(default=None, description="decoder layers to keep; unset: all")
    width: Part | None = Field(default=None, description="channels of each MLP to keep; unset: all")
    heads: Part | None = Field(
        default=None, description="attention heads per layer to keep, equally many of each KV group; unset: all"
    )
    kv_heads: Part | None = Field(default=None, description="KV groups per layer to keep, with their heads; unset: all")
    hidden: Part | None = Field(default=None, description="channels of the hidden state to keep; unset: all")
    layers_by: LayerScore = Field(
        default="block_influence",
        description="selection of layers: by their change of the hidden state (ShortGPT), dropping the last ones before the"
        " final layer, or at random",
    )
    channels_by: ChannelScore = Field(
        default="activation", description="selection of channels and heads: by activations (Minitron), weights, or at random"
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="random seed of random selections")
    calibration: CalibrationConfig = Field(default=CalibrationConfig(), description="calibration text")

    @model_validator(mode="after")
    def _parts(self) -> Self:
        named = {key: getattr(self, key) for key in PARTS}
        if not any(value is not None for value in named.values()):
            raise ValueError(f"nothing to prune; set one of {', '.join(PARTS)}")
        for key, value in named.items():
            if value is None:
                continue
            if isinstance(value, float) and not 0 < value <= 1:
                raise ValueError(f"{key}: {value} is not a fraction above 0 and up to 1; give an integer for a count")
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{key}: {value} leaves nothing; keep at least 1")
        return self

    @property
    def needs_text(self) -> bool:
        """True if a score of a pruned part needs activations."""
        by_layer = self.layers is not None and self.layers_by == "block_influence"
        return by_layer or (self.channels_by == "activation" and any(getattr(self, key) is not None for key in CHANNEL_PARTS))

    def plain(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in PARTS if getattr(self, key) is not None}


CHANNEL_PARTS = ("width", "heads", "kv_heads", "hidden")
PARTS = ("layers", *CHANNEL_PARTS)

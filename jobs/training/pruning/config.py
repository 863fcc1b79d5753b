"""What is cut out of a model, and by which score."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ropewalk.cluster.config import Section
from ropewalk.jobs.training.loop.token_data import Data

Part = int | float  # how many stay, or which fraction of them

LayerScore = Literal["block_influence", "last", "random"]
ChannelScore = Literal["activation", "magnitude", "random"]


class CalibrationConfig(Section):
    """The text on which activations are seen: sample k of the data set, shuffled by the seed."""

    data: Data | None = Field(default=None, description="a data set made by preprocess; unset: the job's own data")
    sequences: int = Field(default=64, ge=1, description="sequences that are looked at")
    seq_len: int | None = Field(default=None, ge=2, description="tokens of a sequence; unset: the job's")
    seed: int = Field(default=0, ge=0, lt=2**32, description="which sequences these are")
    micro_batch: int = Field(default=4, ge=1, description="sequences that are computed at once")


class PruneConfig(Section):
    """What stays of a model. A whole number is a count, a fraction (0.75, or 1.0 for all) a share of what there is."""

    layers: Part | None = Field(default=None, description="decoder layers that stay; unset: all")
    width: Part | None = Field(default=None, description="channels of each MLP that stay; unset: all")
    heads: Part | None = Field(
        default=None, description="attention heads of a layer that stay: equally many of each KV group; unset: all"
    )
    kv_heads: Part | None = Field(default=None, description="KV groups of a layer that stay, with their heads; unset: all")
    hidden: Part | None = Field(default=None, description="channels of the hidden state that stay; unset: all")
    layers_by: LayerScore = Field(
        default="block_influence",
        description="which layers stay: by how much they change the hidden state (ShortGPT), all but the"
        " last ones before the final layer, or at random",
    )
    channels_by: ChannelScore = Field(
        default="activation", description="which channels and heads stay: by activations (Minitron), weights, or at random"
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="of random choices, to compare with")
    calibration: CalibrationConfig = Field(default=CalibrationConfig(), description="the text on which activations are seen")

    @model_validator(mode="after")
    def _parts(self) -> Self:
        named = {key: getattr(self, key) for key in PARTS}
        if not any(value is not None for value in named.values()):
            raise ValueError(f"nothing is cut; set one of {', '.join(PARTS)}")
        for key, value in named.items():
            if value is None:
                continue
            if isinstance(value, float) and not 0 < value <= 1:
                raise ValueError(f"{key}: {value} is no fraction above 0 and up to 1; give a whole number to count what stays")
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{key}: {value} leaves nothing; keep at least 1")
        return self

    @property
    def needs_text(self) -> bool:
        """Whether a score of what is cut is taken of activations."""
        by_layer = self.layers is not None and self.layers_by == "block_influence"
        return by_layer or (self.channels_by == "activation" and any(getattr(self, key) is not None for key in CHANNEL_PARTS))

    def plain(self) -> dict[str, Any]:
        """The parts that are cut, as plain values."""
        return {key: getattr(self, key) for key in PARTS if getattr(self, key) is not None}


CHANNEL_PARTS = ("width", "heads", "kv_heads", "hidden")
PARTS = ("layers", *CHANNEL_PARTS)

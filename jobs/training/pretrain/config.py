"""The keys of the `pretrain` job."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from ropewalk.cluster.input_paths import PathView
from ropewalk.datapipe.loader.config import LoaderConfig
from ropewalk.jobs.training.loop.architecture.divisible import check_divisible
from ropewalk.jobs.training.loop.architecture.fit import check_model
from ropewalk.jobs.training.loop.config import USUAL, NextTokenConfig
from ropewalk.jobs.training.loop.model_keys import ModelConfig
from ropewalk.jobs.training.loop.token_data import Data, check_data


class PretrainConfig(NextTokenConfig):
    """The keys of a pretraining run."""

    usual_keys = ("data", "model.preset", "model.path", "model.config", *USUAL)

    data: Data = Field(description="a data set made by preprocess, or a list of {path, weight}")
    model: ModelConfig = Field(default=ModelConfig(preset="tiny"), description="the model")
    seq_len: int = Field(default=1024, ge=1, description="tokens of a sequence")
    separate_documents: bool = Field(
        default=False,
        description="let no token attend to another document of its sequence, and start positions anew in each; on GPUs slower"
        " with attention=sdpa, which takes a mask of sequence length squared",
    )
    on_corrupt: Literal["error", "quarantine"] = Field(default="error", description="reaction to a damaged shard")
    loader: LoaderConfig = Field(default=LoaderConfig(), description="order of the sequences")

    def packing_key(self) -> str | None:
        return "separate_documents" if self.separate_documents else None

    def preflight(self, here: PathView = Path) -> None:
        """Raise ConfigError or DataError unless local data sets are complete and the model fits them."""
        super().preflight(here)
        manifests = check_data(self.data, here, self.seq_len)
        check_model("model", self.model, here, manifests=manifests, seq_len=self.seq_len)
        check_divisible(self.model, self.parallel, here, manifests=manifests, seq_len=self.seq_len)

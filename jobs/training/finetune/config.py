"""The keys of the `finetune` job."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.input_paths import DataPath, DataPaths, PathView, TokenizerPath
from ropewalk.cluster.section import default_text
from ropewalk.datapipe.chat.built_in import TEMPLATES
from ropewalk.datapipe.chat.config import ChatConfig
from ropewalk.jobs.training.loop.architecture.divisible import check_divisible
from ropewalk.jobs.training.loop.architecture.fit import check_model
from ropewalk.jobs.training.loop.chat_data import check_conversations
from ropewalk.jobs.training.loop.config import USUAL, NextTokenConfig, check_keep_zeros, fill_defaults
from ropewalk.jobs.training.loop.model_keys import GridConfig, LoraConfig, ModelConfig, parse_grid
from ropewalk.jobs.training.loop.optim_keys import OptimConfig
from ropewalk.jobs.training.loop.validation_keys import AdaptationValidationConfig

LORA_LR = 2e-4


class FinetuneOptimConfig(OptimConfig):
    """AdamW for a model that is already trained: small steps."""

    lr: float = Field(
        default=2e-5,
        gt=0,
        description="peak learning rate",
        json_schema_extra=default_text(f"2e-5, with lora {LORA_LR:g}"),
    )
    weight_decay: float = Field(default=0.0, ge=0, description="decay of weights with two or more dimensions")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="decay rates of Adam's two moments")


class FinetuneConfig(NextTokenConfig):
    """The keys of a finetuning run. A sample is a sequence of up to `seq_len` tokens with as many conversations as fit."""

    usual_keys = ("model.path", "model.run", "data", "lora", *USUAL)

    model: ModelConfig = Field(description="model to train: {path: DIR} or {run: RUN}")
    data: DataPaths = Field(
        min_length=1,
        description="conversations: .jsonl[.gz|.zst] or .parquet, files, globs or a name on the hub; or the directory of a"
        " prepared data set",
    )
    chat: ChatConfig = Field(default=ChatConfig(), description="format of conversations, and chat template")
    prepared: DataPath | None = Field(
        default=None, description="directory of the prepared data set; unset: beside the runs, shared by runs with equal keys"
    )
    actors: int | None = Field(
        default=None,
        ge=1,
        description="Ray actors that prepare the conversations; unset: one per core for more than 16 MiB of files, else none",
    )
    validation_fraction: float = Field(
        default=0.05, ge=0, le=0.5, description="share of conversations for the validation split, by a hash of their tokens"
    )
    seq_len: int | None = Field(
        default=None, ge=2, description="tokens per sequence; unset: 1024, or the model's positions if fewer"
    )
    packing: bool = Field(
        default=True, description="pack several conversations into a sequence, each computed as if it stood alone"
    )
    on_long: Literal["drop", "cut", "error"] = Field(
        default="drop", description="a conversation longer than seq_len: drop it, cut its end, or fail; reported"
    )
    tokenizer: TokenizerPath | None = Field(
        default=None, description="Hugging Face directory with the tokenizer; unset: the model's own, which presets lack"
    )
    lora: LoraConfig | None = Field(default=None, description="train a low-rank adapter; unset: all weights")
    qat: Annotated[GridConfig, BeforeValidator(parse_grid)] | None = Field(
        default=None,
        description="quantization-aware training: int8, int4 or {type: int4, group_size: 32}, on the grid of compress's "
        "compressed_tensors; the exported model has exactly these rounded weights; unset: no rounding",
    )
    neftune: float | None = Field(
        default=None, gt=0, description="noise on embeddings in training (NEFTune, arXiv 2310.05914), for example 5; unset: none"
    )
    optim: FinetuneOptimConfig = Field(default=FinetuneOptimConfig(), description="optimizer and learning rate")
    validation: AdaptationValidationConfig = Field(
        default=AdaptationValidationConfig(), description="validation interval, size, early stopping"
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: Any) -> Any:
        return fill_defaults(values, LORA_LR) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.model.path is None and self.model.run is None and self.tokenizer is None:
            raise ValueError("model: a preset or configuration has no tokenizer; set tokenizer, model.path or model.run")
        if self.qat is not None and self.lora is not None:
            raise ValueError(
                "qat: with lora the rounded weights are frozen, and merging the adapter moves them off their grid;"
                " remove lora, or quantize the merged model with compress"
            )
        check_keep_zeros(self, self.lora)
        return self

    def packing_key(self) -> str | None:
        return "packing" if self.packing else None

    def preflight(self, here: PathView = Path) -> None:
        """Raise ConfigError or DataError unless local files exist and the named runs train a model."""
        super().preflight(here)
        for path in self.data:
            local = here(path) if "://" not in path else None
            if local is not None:
                check_conversations(path, local)
        for key, value in {"chat.template": self.chat.template, "tokenizer": self.tokenizer}.items():
            local = here(value) if value is not None and value not in TEMPLATES and "://" not in value else None
            if local is not None and not local.exists():
                raise ConfigError(f"{key}: {value}: no such file; check the path, or name one of {', '.join(TEMPLATES)}")
        check_model("model", self.model, here, seq_len=self.seq_len)
        check_divisible(self.model, self.parallel, here, seq_len=self.seq_len, adapter=self._adapt)

    def _adapt(self, model: Any) -> Any:
        if self.lora is None:
            return model
        from ropewalk.jobs.training.loop.weights.lora import lora_adapter  # imports torch

        return lora_adapter(self.lora, 0)(model)

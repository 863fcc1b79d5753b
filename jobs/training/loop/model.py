"""The model of a run: its configuration, the origin of its first weights, and its construction on the ranks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from ropewalk.cluster.errors import CheckpointError, ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.datapipe.manifest import TokenizerRecord
from ropewalk.jobs.training.loop.architecture.bare_model import skeleton
from ropewalk.jobs.training.loop.architecture.grid import train_on_grid
from ropewalk.jobs.training.loop.architecture.model_config import (
    check_fit,
    config_from_fingerprint,
    model_config,
    model_fingerprint,
)
from ropewalk.jobs.training.loop.architecture.model_record import (
    Head,
    ModelRecord,
    Weights,
    checkpoint_folder,
    find_source_run,
    read_record,
)
from ropewalk.jobs.training.loop.attention import Kernel, use_kernel
from ropewalk.jobs.training.loop.model_keys import GridConfig, LoraConfig, ModelConfig
from ropewalk.jobs.training.loop.weights.adapter_weights import AdaptedWeights
from ropewalk.jobs.training.loop.weights.run_weights import ADDED_TOKENS, HEAD, LORA, first_weights, seed_of
from ropewalk.jobs.training.loop.weights.weight_reader import for_ranks, set_values
from ropewalk.sharding.checkpoints.layout import complete_steps, directory_of
from ropewalk.sharding.checkpoints.manifest import read_manifest
from ropewalk.sharding.config import ParallelConfig, PrecisionConfig
from ropewalk.sharding.group import Group
from ropewalk.sharding.parallelize import Adapter, parallelize

ADAPTER = "adapter"  # key of a fingerprint: the adapter


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """A model before it is built. With an adapter, checkpoints hold only the trained parameters."""

    config: Any  # of transformers
    seq_len: int
    weights: Weights | None = None  # None: random, from the seed
    origin: Weights | None = None  # source of weights that were derived for this run, such as pruned from another model
    adapter: Adapter | None = None  # changes the model before it is sharded, such as peft's layers
    adapter_keys: dict[str, Any] | None = None  # plain values that determine the adapter
    head: Head = "causal_lm"
    grid: GridConfig | None = None  # quantization-aware training: compute with matrices on this grid; exports are rounded to it
    kernel: Kernel = "sdpa"  # of attention in training
    noise: float | None = None  # alpha of the noise on input embeddings in training (NEFTune)
    draws: bool = False  # the adapter draws random numbers in training, as dropout does

    @classmethod
    def of(cls, config: ModelConfig, run: RunDir, *, tokenizer: TokenizerRecord, seq_len: int) -> "ModelPlan":
        """Create the plan that a configuration names, for a run whose data has this tokenizer. Raises ConfigError."""
        if config.run is None:
            weights = Weights(path=config.path) if config.path is not None else None
            vocabulary, end = tokenizer.vocabulary, tokenizer.end_of_document
            transformers_config = model_config(config, vocabulary=vocabulary, end_of_document=end, seq_len=seq_len)
            return cls(config=transformers_config, seq_len=seq_len, weights=weights)
        fingerprint, weights = _model_of_run(config, run, tokenizer)
        transformers_config = config_from_fingerprint(fingerprint)
        check_fit(transformers_config, tokenizer.vocabulary, seq_len)
        return cls(config=transformers_config, seq_len=seq_len, weights=weights)

    def with_lora(self, lora: LoraConfig | None, seed: int, added_tokens: Sequence[int] = ()) -> "ModelPlan":
        """Add a low-rank adapter, whose weights alone are trained and saved; None changes nothing.

        The embeddings of tokens that were added to the vocabulary are trained and saved too.
        """
        if lora is None:
            return self
        from ropewalk.jobs.training.loop.weights.lora import lora_adapter

        keys = {LORA: lora.model_dump(mode="json"), **({ADDED_TOKENS: list(added_tokens)} if added_tokens else {})}
        return replace(self, adapter=lora_adapter(lora, seed, added_tokens), adapter_keys=keys, draws=lora.dropout > 0)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The plain values that determine the model: a checkpoint with another fingerprint is refused."""
        adapter = {} if self.adapter is None else {ADAPTER: self.adapter_keys}
        head = {} if self.head == "causal_lm" else {HEAD: self.head}
        return {**model_fingerprint(self.config), **head, **adapter}

    def record(self, tokenizer: TokenizerRecord, compute: Literal["bf16", "fp32"]) -> ModelRecord:
        return ModelRecord(
            fingerprint=model_fingerprint(self.config),
            seq_len=self.seq_len,
            tokenizer=tokenizer,
            weights=self.origin or self.weights,
            adapter=None if self.adapter is None else self.adapter_keys or {},
            head=self.head,
            grid=self.grid,
            compute="bfloat16" if compute == "bf16" else "float32",
        )


def _model_of_run(config: ModelConfig, run: RunDir, tokenizer: TokenizerRecord) -> tuple[dict[str, Any], Weights | None]:
    """Return the fingerprint and checkpoint of another run's model; both are fixed once this run has started."""
    record = read_record(run)
    if record is not None:  # the other run may have been deleted
        return record.fingerprint, record.weights
    assert config.run is not None
    source_run = find_source_run(run, config.run, "model.run")
    checkpoints = checkpoint_folder(source_run)
    steps = complete_steps(checkpoints) if config.step is None else [config.step]
    if not steps:
        raise CheckpointError(f"model.run: {source_run.id} has no complete checkpoint yet; wait for one, or name another run")
    source = read_record(source_run)
    if source is not None and source.head != "causal_lm":
        raise ConfigError(f"model.run: {source_run.id} trained a reward model, which generates no text; name another run")
    if source is not None and source.tokenizer.hash != tokenizer.hash:
        raise ConfigError(
            f"model.run: {source_run.id} was trained with the tokenizer {source.tokenizer.name} ({source.tokenizer.hash}), "
            f"the data with {tokenizer.name} ({tokenizer.hash}); preprocess the data with tokenizer.path={source_run.tokenizer}"
        )
    identity = read_manifest(checkpoints.child(directory_of(steps[-1]))).identity
    fingerprint = {key: value for key, value in identity.items() if key != ADAPTER}  # the adapter is merged
    return fingerprint, Weights(run=config.run, step=steps[-1])


def build_model(
    plan: ModelPlan,
    run: RunDir,
    group: Group,
    parallel: ParallelConfig,
    precision: PrecisionConfig,
    *,
    weights: bool = True,
    trainable: bool = True,
) -> nn.Module:
    """Build the model sharded over the group; its first weights do not depend on the number of ranks.

    With `weights=False` they are left undefined, for a checkpoint to fill. A model that is not `trainable` (a teacher, a
    reference) is frozen: it gets no optimizer state and is in no checkpoint.
    """
    reader = first_weights(plan.config, plan.weights, run, plan.head) if weights else None
    model = parallelize(skeleton(plan.config, plan.head), group, parallel, precision, trainable=trainable, adapter=plan.adapter)
    if reader is not None:
        adapted = reader if plan.adapter is None else AdaptedWeights(reader, model, seed_of(run))
        set_values(model, for_ranks(adapted, group))
    if trainable:
        use_kernel(model, plan.kernel)
    if trainable and plan.noise is not None:
        add_noise(model, plan.noise)
    if trainable and plan.grid is not None:
        train_on_grid(model, plan.grid)
    return model


def add_noise(model: Any, alpha: float) -> None:
    """Add uniform noise in ±alpha/√(T·d) to the input embeddings, [B, T, d], in training mode (NEFTune, arXiv 2310.05914)."""

    def noisy(module: nn.Module, inputs: Any, output_BTD: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return output_BTD
        size = alpha / (output_BTD.shape[1] * output_BTD.shape[2]) ** 0.5
        return output_BTD + torch.empty_like(output_BTD).uniform_(-size, size)

    model.get_input_embeddings().register_forward_hook(noisy)

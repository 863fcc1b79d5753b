"""Open the model of a run or of a Hugging Face directory in this process, with its tokenizer."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.runs.models.find_model import find_checkpoint
from ropewalk.jobs.training.loop.architecture.model_record import read_record
from ropewalk.jobs.training.loop.weights.load_checkpoint import load_tensors
from ropewalk.jobs.training.loop.weights.run_weights import open_checkpoint, open_directory
from ropewalk.jobs.training.loop.weights.weight_reader import WeightReader
from ropewalk.sharding.config import PrecisionConfig
from ropewalk.sharding.group import rank_device
from ropewalk.sharding.parallelize import compute_format

DEFAULT_MAX_LENGTH = 2048  # of a model without a limit in its configuration
_LENGTH_KEYS = ("n_positions", "max_position_embeddings", "n_ctx")
_NO_LIMIT = 10**12  # tokenizers without a limit have a much larger number


@dataclass(frozen=True, kw_only=True)
class OpenModel:
    """A loaded model with its tokenizer: frozen, in evaluation mode, on its device."""

    model: Any  # of transformers
    tokenizer: Any  # of transformers
    name: str  # the run's id, or the directory
    step: int | None  # of the checkpoint; None for a directory
    max_length: int  # context length in tokens

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @property
    def end(self) -> int:
        """The token that ends a text. Raises ConfigError if the tokenizer has none."""
        if self.tokenizer.eos_token_id is None:
            raise ConfigError(f"model: the tokenizer of {self.name} has no end-of-text token (eos_token); set one in its files")
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix(self) -> int:
        """The token in front of a text without context: beginning of text, or else end of text."""
        first = self.tokenizer.bos_token_id
        return int(first) if first is not None else self.end


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """A model on disk, of which nothing but the configuration has been read."""

    model: Any  # of transformers, its parameters on the meta device
    reader: WeightReader
    name: str  # the run's id, or the directory
    step: int | None  # of the checkpoint; None for a directory
    directory: Path | None  # None for a run
    tokenizer_folder: Path

    def opened(self, model: Any) -> OpenModel:
        """Return the model, which now has its values, with its tokenizer."""
        tokenizer = open_tokenizer(self.tokenizer_folder, self.name)
        model = model.eval().requires_grad_(False)
        return OpenModel(
            model=model, tokenizer=tokenizer, name=self.name, step=self.step, max_length=max_length(model, tokenizer)
        )


def find_stored(ref: str, root: Path | None = None, *, step: int | None = None) -> StoredModel:
    """Find a model by reference.

    `root` is the folder of runs, `step` the checkpoint of a run (unset: that of `ref`, or else the newest). Raises ConfigError
    if the model does not exist; CheckpointError.
    """
    location, named_step = find_checkpoint(ref, root)
    _refuse_reward_model(location)
    if isinstance(location, RunDir):
        trained = open_checkpoint(location, step if step is not None else named_step)
        return StoredModel(
            model=trained.model,
            reader=trained.reader,
            name=location.id,
            step=trained.manifest.step,
            directory=None,
            tokenizer_folder=location.tokenizer,
        )
    try:
        model, reader = open_directory(location)
    except ValueError as error:  # such as an architecture that only code in the directory defines
        raise ConfigError(f"model: {location} cannot be opened: {str(error).splitlines()[0][:300]}") from None
    return StoredModel(model=model, reader=reader, name=str(location), step=None, directory=location, tokenizer_folder=location)


def open_model(
    ref: str,
    root: Path | None = None,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    step: int | None = None,
) -> OpenModel:
    """Open a model by reference as `find_stored` finds it; every rank that calls this holds a full copy.

    On a CPU the files of a directory are mapped if they have this number format. Raises ConfigError if the model or its
    tokenizer does not exist; CheckpointError.
    """
    return load_stored(find_stored(ref, root, step=step), device=device or rank_device(), dtype=dtype)


def load_stored(stored: StoredModel, *, device: torch.device, dtype: torch.dtype) -> OpenModel:
    """Load a model whole; it is held once, and parts of files are mapped where possible."""
    if stored.directory is not None:
        model = AutoModelForCausalLM.from_pretrained(stored.directory, dtype=dtype, trust_remote_code=False).to(device)
    else:
        model = load_tensors(stored.model, stored.reader, dtype=dtype, device=device)
    return stored.opened(model)


def serving_dtype(location: RunDir | Path, device: torch.device) -> torch.dtype:
    """Return the number format for serving: fp32 on CPUs; on GPUs fp16 if the checkpoint is in it, or else bf16 if supported."""
    keys = json.loads((location / "config.json").read_text()) if isinstance(location, Path) else {}
    if device.type == "cuda" and "float16" in (keys.get("dtype"), keys.get("torch_dtype")):
        return torch.float16
    return torch.bfloat16 if compute_format(PrecisionConfig(), device) == "bf16" else torch.float32


def _refuse_reward_model(location: RunDir | Path) -> None:
    """Raise ConfigError for a model whose head scores whole texts and predicts no tokens."""
    if isinstance(location, RunDir):
        record = read_record(location)
        scores = record is not None and record.head != "causal_lm"
    else:
        named = json.loads((location / "config.json").read_text()).get("architectures") or []
        scores = bool(named) and all(str(name).endswith("ForSequenceClassification") for name in named)
    if scores:
        name = location.id if isinstance(location, RunDir) else location
        raise ConfigError(
            f"model: {name} is a reward model, which scores texts and generates none; name a model that generates, or use"
            " it as a reward: align method=grpo, grpo.rewards=[{model: {of: ...}}]"
        )


def open_tokenizer(folder: Path, name: str) -> Any:
    """Open the tokenizer in a folder. Raises ConfigError that names its model if it does not open."""
    remedy = "copy the tokenizer's files (tokenizer.json, tokenizer_config.json) beside the weights"
    if not folder.is_dir() or not any(folder.glob("*token*")):
        raise ConfigError(f"model: {name} has no tokenizer in {folder}; {remedy}")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ConfigError(f"model: the tokenizer of {name} in {folder} cannot be opened: {reason}; {remedy}") from None


def max_length(model: Any, tokenizer: Any) -> int:
    """Return the number of tokens a model can see: by its configuration, or else its tokenizer's limit, or else 2048."""
    for key in _LENGTH_KEYS:
        if (length := getattr(model.config, key, None)) is not None:
            return int(length)
    limit = getattr(tokenizer, "model_max_length", None)
    return int(limit) if limit is not None and limit < _NO_LIMIT else DEFAULT_MAX_LENGTH

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
from ropewalk.jobs.training.loop.load_checkpoint import load_model
from ropewalk.jobs.training.loop.model_record import read_record
from ropewalk.sharding.config import PrecisionConfig
from ropewalk.sharding.group import rank_device
from ropewalk.sharding.parallelize import compute_format

DEFAULT_MAX_LENGTH = 2048  # of a model that names no limit
_LENGTH_KEYS = ("n_positions", "max_position_embeddings", "n_ctx")
_NO_LIMIT = 10**12  # tokenizers without a limit name a number far beyond this


@dataclass(frozen=True, kw_only=True)
class OpenModel:
    """A model that can be asked: frozen, in evaluation mode, on its device."""

    model: Any  # of transformers
    tokenizer: Any  # of transformers
    name: str  # the run's id, or the directory
    step: int | None  # of the checkpoint; None for a directory
    max_length: int  # tokens that it can see

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        found: torch.device = self.model.device
        return found

    @property
    def end(self) -> int:
        """The token that ends a text. Raises ConfigError for a tokenizer that has none."""
        if self.tokenizer.eos_token_id is None:
            raise ConfigError(f"model: the tokenizer of {self.name} has no end-of-text token (eos_token); set one in its files")
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix(self) -> int:
        """The token that stands before a text without context: beginning of text, else end of text."""
        first = self.tokenizer.bos_token_id
        return int(first) if first is not None else self.end


def open_model(
    ref: str,
    root: Path | None = None,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    step: int | None = None,
) -> OpenModel:
    """Open the model that a user names; every rank that calls it has a whole copy.

    `root` is the folder of runs, `step` the checkpoint of a run (unset: that of `ref`, else the newest one). Raises ConfigError
    where there is no such model, or no tokenizer; CheckpointError.
    """
    found, named_step = find_checkpoint(ref, root)
    _refuse_reward_model(found)
    if isinstance(found, RunDir):
        full, manifest = load_model(found, step if step is not None else named_step)
        step, name, files = manifest.step, found.id, found.tokenizer
    else:
        full = AutoModelForCausalLM.from_pretrained(found, dtype=torch.float32)
        step, name, files = None, str(found), found
    tokenizer = open_tokenizer(files, name)
    model = full.to(device=device or rank_device(), dtype=dtype).eval().requires_grad_(False)
    return OpenModel(model=model, tokenizer=tokenizer, name=name, step=step, max_length=max_length(model, tokenizer))


def serving_dtype(found: RunDir | Path, device: torch.device) -> torch.dtype:
    """The number format in which a model answers on a device: fp32 on CPUs, on GPUs fp16 if that is the checkpoint's own, else
    bf16 if the GPU has it.
    """
    keys = json.loads((found / "config.json").read_text()) if isinstance(found, Path) else {}
    if device.type == "cuda" and "float16" in (keys.get("dtype"), keys.get("torch_dtype")):
        return torch.float16
    return torch.bfloat16 if compute_format(PrecisionConfig(), device) == "bf16" else torch.float32


def _refuse_reward_model(found: RunDir | Path) -> None:
    """Raise ConfigError for a model with a head that scores whole texts: of one that writes it has no word."""
    if isinstance(found, RunDir):
        record = read_record(found)
        scores = record is not None and record.head != "causal_lm"
    else:
        named = json.loads((found / "config.json").read_text()).get("architectures") or []
        scores = bool(named) and all(str(name).endswith("ForSequenceClassification") for name in named)
    if scores:
        name = found.id if isinstance(found, RunDir) else found
        raise ConfigError(
            f"model: {name} is a reward model, which scores texts and writes none; name one that writes, or let it reward"
            " answers: align method=grpo, grpo.rewards=[{model: {of: ...}}]"
        )


def open_tokenizer(folder: Path, name: str) -> Any:
    """The tokenizer in a folder. Raises ConfigError where there is none, and says whose it is."""
    remedy = "copy the tokenizer's files (tokenizer.json, tokenizer_config.json) beside the weights"
    if not folder.is_dir() or not any(folder.glob("*token*")):
        raise ConfigError(f"model: {name} has no tokenizer in {folder}, and its tasks are text; {remedy}")
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ConfigError(f"model: the tokenizer of {name} in {folder} does not open: {said}; {remedy}") from None


def max_length(model: Any, tokenizer: Any) -> int:
    """How many tokens a model can see: its own word, else its tokenizer's, else 2048."""
    for key in _LENGTH_KEYS:
        if (found := getattr(model.config, key, None)) is not None:
            return int(found)
    limit = getattr(tokenizer, "model_max_length", None)
    return int(limit) if limit is not None and limit < _NO_LIMIT else DEFAULT_MAX_LENGTH

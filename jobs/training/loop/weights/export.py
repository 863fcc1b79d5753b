"""Export a run's model as a standard Hugging Face directory."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import require_empty
from ropewalk.jobs.training.loop.architecture.model_record import ModelRecord, copy_tokenizer, open_weights, require_record
from ropewalk.jobs.training.loop.model_keys import LoraConfig

if TYPE_CHECKING:
    from ropewalk.jobs.training.loop.weights.run_weights import TrainedModel

BASE = "base"  # folder beside an adapter with its base model, unless a directory holds exactly that


def export(
    run: RunDir,
    directory: Path,
    step: int | None = None,
    finish: Callable[[Path, int], None] = lambda directory, step: None,
    *,
    adapter: bool = False,
    ema: bool = False,
    dtype: str | None = None,
) -> Path:
    """Write safetensors, configuration and tokenizer of the newest complete checkpoint (or that of `step`).

    A low-rank adapter is merged; with `adapter` it is written alone, in peft's format, and names its base: the directory that
    training started from, or a copy in `base/` if that was a run, or had another vocabulary or head. With `ema` the weights
    are the moving average. `dtype` is float32 or bfloat16; unset, the format that training computed in. `finish(directory, step)`
    may add files before the directory becomes visible. One tensor at a time is in memory, and no process group or GPU is needed.
    Raises CheckpointError if there is no such checkpoint, ConfigError if the run lacks the requested model or the directory is
    not empty.
    """
    from transformers.utils.logging import disable_progress_bar

    from ropewalk.jobs.training.loop.weights.run_weights import LORA, open_checkpoint
    from ropewalk.jobs.training.loop.weights.write_weights import write_model

    disable_progress_bar()  # of the files that it writes
    require_empty(directory)
    record = require_record(run)
    if adapter and LORA not in (record.adapter or {}):
        raise ConfigError(f"run {run.id} trains all weights and has no adapter; omit --adapter")
    opened = open_checkpoint(run, step, merge=not adapter, ema=ema)
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if adapter:
        _save_adapter(opened, run, record, partial, directory)
    else:
        write_model(opened.model, opened.reader, partial, number_format(dtype or record.compute))
    copy_tokenizer(run, partial)
    open_weights(partial)
    finish(partial, opened.manifest.step)
    if directory.exists():
        directory.rmdir()
    partial.rename(directory)  # atomic: readers see a complete model or none
    run.event("exported", step=opened.manifest.step, directory=str(directory.absolute()))
    return directory


def number_format(name: str) -> Any:
    """Return torch's number format of a name."""
    import torch

    return getattr(torch, name)


def _save_adapter(opened: "TrainedModel", run: RunDir, record: ModelRecord, partial: Path, directory: Path) -> None:
    """Write the adapter into `partial`, which becomes `directory`, and its base unless a directory holds exactly that."""
    import torch

    from ropewalk.jobs.training.loop.architecture.bare_model import skeleton
    from ropewalk.jobs.training.loop.architecture.model_config import config_from_fingerprint
    from ropewalk.jobs.training.loop.weights.lora import save_adapter
    from ropewalk.jobs.training.loop.weights.run_weights import ADDED_TOKENS, LORA, first_weights
    from ropewalk.jobs.training.loop.weights.write_weights import write_model

    assert record.adapter is not None
    base = _base_directory(record)
    if base is None:
        config = config_from_fingerprint(record.fingerprint)
        model = skeleton(config, record.head)
        model.generation_config = opened.model.generation_config
        (partial / BASE).mkdir()
        write_model(model, first_weights(config, record.weights, run, record.head), partial / BASE, torch.float32)
        copy_tokenizer(run, partial / BASE)
        base = str(directory.absolute() / BASE)
    lora, added = LoraConfig.model_validate(record.adapter[LORA]), record.adapter.get(ADDED_TOKENS, ())
    save_adapter(opened.model, opened.reader, lora, partial, base=base, added_tokens=added, head=record.head)


def _base_directory(record: ModelRecord) -> str | None:
    """Return the directory of the base model, if training started from exactly what it holds."""
    from transformers import AutoConfig

    path = record.weights.path if record.weights is not None else None
    if path is None or not Path(path).is_absolute() or record.head != "causal_lm" or not Path(path).is_dir():
        return None
    grown = AutoConfig.from_pretrained(path, trust_remote_code=False).vocab_size != record.fingerprint.get("vocab_size")
    return None if grown else path

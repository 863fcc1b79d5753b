"""Write a run's model as a Hugging Face directory that anyone can open."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError
from cluster.run.directory import RunDir
from jobs.training.config import LoraConfig
from jobs.training.model_record import ModelRecord, copy_tokenizer, require_record


def export(
    run: RunDir,
    directory: Path,
    step: int | None = None,
    finish: Callable[[Path, int], None] = lambda directory, step: None,
    *,
    adapter: bool = False,
    ema: bool = False,
) -> Path:
    """Write safetensors, configuration and tokenizer of the newest complete checkpoint (or that of `step`).

    A low-rank adapter is merged; with `adapter` it is written by itself, in peft's format. With `ema` the weights are the mean
    over the steps. `finish` is given the directory and the step before anybody sees them, and may add files. Needs no process
    group and no GPU. Raises CheckpointError where there is no such checkpoint, ConfigError where the run trains no model or not
    what is asked for, or the directory holds something already.
    """
    from jobs.training.load_checkpoint import LORA, load_model

    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory}: is not an empty directory; name a new one")
    record = require_record(run)
    if adapter and LORA not in (record.adapter or {}):
        raise ConfigError(f"run {run.id} trains all weights and has no adapter; leave --adapter out")
    model, manifest = load_model(run, step, merge=not adapter, ema=ema)
    partial = directory.with_name(f".{directory.name}.partial")
    _empty(partial)
    if adapter:
        _save_adapter(model, record, partial)
    else:
        model.save_pretrained(partial)
    copy_tokenizer(run, partial)
    finish(partial, manifest.step)
    if directory.exists():
        directory.rmdir()
    partial.rename(directory)  # a reader sees a complete model or none
    run.event("exported", step=manifest.step, directory=str(directory.absolute()))
    return directory


def _save_adapter(model: Any, record: ModelRecord, directory: Path) -> None:
    from jobs.training.load_checkpoint import LORA
    from jobs.training.lora import save_adapter

    assert record.adapter is not None, "it was asked for"
    base = record.weights.path if record.weights is not None else None
    save_adapter(model, LoraConfig.model_validate(record.adapter[LORA]), directory, base)


def _empty(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.iterdir():
        path.unlink()

"""Write a run's model as a Hugging Face directory that anyone can open."""

from collections.abc import Callable
from pathlib import Path

from cluster.errors import ConfigError
from cluster.run.directory import RunDir
from jobs.training.model_record import copy_tokenizer


def export(
    run: RunDir, directory: Path, step: int | None = None, finish: Callable[[Path, int], None] = lambda directory, step: None
) -> Path:
    """Write safetensors, configuration and tokenizer of the newest complete checkpoint (or that of `step`).

    `finish` is given the directory and the step before anybody sees them, and may add files. Needs no process group and
    no GPU. Raises CheckpointError where there is no such checkpoint, ConfigError where the run trains no model, or the
    directory holds something already.
    """
    from jobs.training.load_checkpoint import load_model

    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory}: is not an empty directory; name a new one")
    model, manifest = load_model(run, step)
    partial = directory.with_name(f".{directory.name}.partial")
    _empty(partial)
    model.save_pretrained(partial)
    copy_tokenizer(run, partial)
    finish(partial, manifest.step)
    if directory.exists():
        directory.rmdir()
    partial.rename(directory)  # a reader sees a complete model or none
    run.event("exported", step=manifest.step, directory=str(directory.absolute()))
    return directory


def _empty(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.iterdir():
        path.unlink()

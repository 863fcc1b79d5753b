"""Write a run's model as a Hugging Face directory that anyone can open.

Usage on the machine where the run lies: python -m jobs.training.export RUN_DIR DIR [--step N]
"""

import argparse
import sys
from pathlib import Path

from cluster.errors import ConfigError, RopewalkError
from cluster.run.directory import RunDir
from jobs.training.model_record import copy_tokenizer


def export(run: RunDir, directory: Path, step: int | None = None) -> Path:
    """Write safetensors, configuration and tokenizer of the newest complete checkpoint (or that of `step`).

    Needs no process group and no GPU. Raises CheckpointError where there is no such checkpoint, ConfigError
    where the run trains no model, or the directory holds something already.
    """
    from jobs.training.load_checkpoint import load_model

    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory}: is not an empty directory; name a new one")
    model, manifest = load_model(run, step)
    partial = directory.with_name(f".{directory.name}.partial")
    _empty(partial)
    model.save_pretrained(partial)
    copy_tokenizer(run, partial)
    if directory.exists():
        directory.rmdir()
    partial.rename(directory)  # a reader sees a complete model or none
    run.event("exported", step=manifest.step, directory=str(directory.absolute()))
    return directory


def _empty(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.iterdir():
        path.unlink()


def main() -> None:
    """Export one run on behalf of a machine that does not see it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--step", type=int)
    words = parser.parse_args()
    try:
        export(RunDir(words.run_dir), words.directory, words.step)
    except RopewalkError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

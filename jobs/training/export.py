"""Write a run's model as a Hugging Face directory that anyone can open.

Usage, where the run lies and its cluster is nobody's business: python -m jobs.training.export RUN_DIR DIR [--step N]
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.errors import CheckpointError, ConfigError, RopewalkError
from cluster.run.directory import RunDir

if TYPE_CHECKING:
    from cluster.storage import StoragePath


def export(run: RunDir, directory: Path, step: int | None = None) -> Path:
    """Write safetensors, configuration and tokenizer of the newest complete checkpoint (or that of `step`).

    Needs no process group and no GPU. Raises CheckpointError where there is no such checkpoint, ConfigError
    where the directory holds something already.
    """
    from jobs.training.load_checkpoint import checkpointed_model, tokenizer_place

    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory}: is not an empty directory; name a new one")
    model, manifest = checkpointed_model(run, step)
    partial = directory.with_name(f".{directory.name}.partial")
    _empty(partial)
    model.save_pretrained(partial)
    _copy_tokenizer(tokenizer_place(run), partial)
    if directory.exists():
        directory.rmdir()
    partial.rename(directory)  # a reader sees a whole model or none
    run.event("exported", step=manifest.step, directory=str(directory.absolute()))
    return directory


def _empty(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.iterdir():
        path.unlink()


def _copy_tokenizer(place: "StoragePath", directory: Path) -> None:
    """The tokenizer's files lie in the data set."""
    names = place.names()
    if not names:
        raise CheckpointError(f"{place.url}: the data set's tokenizer is gone, so the model would be of no use; put it back")
    for name in names:
        (directory / name).write_bytes(place.read(name))


def main() -> None:
    """Export one run, for a machine that does not see it."""
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

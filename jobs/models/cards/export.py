"""Write a run's model as a Hugging Face directory, with its model card and bill of materials.

Usage on the machine of the run: python -m ropewalk.jobs.models.cards.export RUN_DIR DIR [--step N | --best]
[--adapter] [--ema] [--dtype float32|bfloat16]
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from ropewalk.cluster.errors import RopewalkError
from ropewalk.cluster.run.directory import RunDir


def export_with_cards(
    run: RunDir,
    directory: Path,
    step: int | None = None,
    *,
    adapter: bool = False,
    ema: bool = False,
    best: bool = False,
    dtype: str | None = None,
) -> Path:
    """Export a checkpoint with its cards: the newest complete one, that of `step`, or with `best` that of the best validation."""
    from ropewalk.jobs.models.cards.write import write_model_cards
    from ropewalk.jobs.training.loop.weights.export import export
    from ropewalk.jobs.training.loop.weights.load_checkpoint import best_step

    if best:
        step = best_step(run)

    finish = partial(write_model_cards, run)
    return export(run, directory, step, finish=finish, adapter=adapter, ema=ema, dtype=dtype)


def main() -> None:
    """Export a run on behalf of a machine without access to it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--step", type=int)
    parser.add_argument("--adapter", action="store_true")
    parser.add_argument("--ema", action="store_true")
    parser.add_argument("--best", action="store_true")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    arguments = parser.parse_args()
    try:
        export_with_cards(
            RunDir(arguments.run_dir),
            arguments.directory,
            arguments.step,
            adapter=arguments.adapter,
            ema=arguments.ema,
            best=arguments.best,
            dtype=arguments.dtype,
        )
    except RopewalkError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

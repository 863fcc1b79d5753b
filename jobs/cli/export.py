"""Commands that take something out of runs: export (a model), sync (W&B files)."""

import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ropewalk.jobs.cli import complete
from ropewalk.jobs.cli.arguments import RunRef

if TYPE_CHECKING:
    from ropewalk.cluster.run.directory import RunDir


def export(  # noqa: PLR0917 - typer reads the options of a command from its arguments
    run_ref: RunRef,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="the directory to write; with --format gguf: the file")],
    step: Annotated[int | None, typer.Option("--step", help="the checkpoint of this step; unset: the newest")] = None,
    adapter: Annotated[bool, typer.Option("--adapter", help="the low-rank adapter by itself, as peft opens it")] = False,
    best: Annotated[
        bool, typer.Option("--best", help="the checkpoint of the best validation, where the run keeps it (validation.keep_best)")
    ] = False,
    ema: Annotated[bool, typer.Option("--ema", help="the running mean of the weights, where the run keeps one")] = False,
    gated: Annotated[
        bool, typer.Option("--gated", help="only if the gates that evaluate and audit held this checkpoint to have passed")
    ] = False,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="hf|gguf[:TYPE]",
            help="hf, or a file of llama.cpp's: gguf (in F32), gguf:Q8_0, gguf:Q4_K ...",
        ),
    ] = "hf",
) -> None:
    """Write a checkpoint as a Hugging Face model directory, with its model card and bill of materials; or as a GGUF file."""
    from ropewalk.cluster.errors import ConfigError
    from ropewalk.jobs.models.cards.export import export_with_cards
    from ropewalk.jobs.runs.show.remote import export_elsewhere
    from ropewalk.jobs.runs.show.status import find_run

    found = find_run(run_ref)
    if best and step is not None:
        raise ConfigError("--best and --step name two checkpoints; leave one of them out")
    if gated:
        step = _passed_step(found, step, best=best)
        best = False
    options = [word for word, asked in (("--adapter", adapter), ("--ema", ema), ("--best", best)) if asked]

    def write(target: Path) -> None:
        if not export_elsewhere(found, target, step, options):
            if step is not None:
                _check_step(found, step)
            export_with_cards(found, target, step, adapter=adapter, ema=ema, best=best)

    if form == "hf":
        write(directory)
    else:
        _write_gguf(found.id, write, directory, form, adapter=adapter)
    print(directory)


def _check_step(run: "RunDir", step: int) -> None:
    """Raise ConfigError unless the run has a checkpoint of this step, whole or not."""
    from ropewalk.cluster.errors import ConfigError
    from ropewalk.jobs.training.loop.model_record import checkpoint_place
    from ropewalk.sharding.layout import steps_in, told_steps

    place = checkpoint_place(run)
    steps = sorted(told_steps(place).union(steps_in(place)))
    if step not in steps:
        known = f"those of steps {', '.join(map(str, steps))}" if steps else "none yet"
        raise ConfigError(f"--step {step}: {run.id} has no such checkpoint; it has {known}")


def _write_gguf(name: str, write: Callable[[Path], None], target: Path, form: str, *, adapter: bool) -> None:
    """Export to a directory of no duration, and write that as GGUF. Raises ConfigError."""
    import torch

    from ropewalk.cluster.errors import ConfigError
    from ropewalk.jobs.inference.gguf.gguf import check_type, write_gguf
    from ropewalk.jobs.inference.gguf.gguf_types import UNQUANTIZED
    from ropewalk.jobs.inference.scoring.open_model import open_model

    kind, _, type_name = form.partition(":")
    if kind != "gguf":
        raise ConfigError(f"--format: {form!r} is not a format; hf, gguf or gguf:TYPE")
    if adapter:
        raise ConfigError("--adapter is peft's own format; leave it out, and the file has it merged")
    check_type(type_name := type_name or UNQUANTIZED)
    if target.exists():
        raise ConfigError(f"{target}: exists; name a new file")
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.absolute().parent, prefix=".export-") as folder:
        write(Path(folder) / "model")
        opened = open_model(str(Path(folder) / "model"), device=torch.device("cpu"))
        write_gguf(opened, target, type_name, name=name)


def _passed_step(run: "RunDir", step: int | None, *, best: bool) -> int:
    """The step of the checkpoint that the gates let pass. Raises ConfigError, CheckpointError."""
    from ropewalk.jobs.runs.models.gates import require_passed
    from ropewalk.jobs.training.loop.load_checkpoint import best_step
    from ropewalk.jobs.training.loop.model_record import checkpoint_place
    from ropewalk.sharding.checkpoint import newest_complete

    if best:
        step = best_step(run)
    if step is None:
        step = newest_complete(checkpoint_place(run))[1].step
    require_passed(run, step)
    return step


def sync(
    run_ref: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="only this run; unset: all", autocompletion=complete.runs)
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="go on until Ctrl-C, with all runs as they come and go")] = False,
) -> None:
    """Send to W&B what it lacks of your runs: on a login node, where the compute nodes have no network."""
    from ropewalk.cluster.errors import BackendError, ConfigError
    from ropewalk.jobs.runs.mirror.mirror import is_complete, send_rest
    from ropewalk.jobs.runs.mirror.server import why_away
    from ropewalk.jobs.runs.show.status import all_runs, find_run

    if follow:
        if run_ref:
            raise ConfigError("sync --follow sends all runs; leave RUN out")
        return _follow()
    waiting = [run for run in ([find_run(run_ref)] if run_ref else all_runs()) if run.attempts() and not is_complete(run)]
    if waiting and (away := why_away()):
        raise BackendError(f"W&B lacks lines of {len(waiting)} runs, but {away}; then `ropewalk sync` again")
    for run in waiting:
        print(f"{run.id}: {send_rest(run)} lines")
    return None


def _follow() -> None:
    from ropewalk.jobs.runs.mirror.relay import Relay
    from ropewalk.jobs.runs.show.status import roots

    with suppress(KeyboardInterrupt):
        Relay(roots(), lambda words: print(words, flush=True)).follow(lambda: False)

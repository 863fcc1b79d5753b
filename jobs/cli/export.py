"""Commands that take something out of runs: export (a model), sync (W&B files)."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.cli import complete
from jobs.cli.arguments import RunRef

if TYPE_CHECKING:
    from cluster.run.directory import RunDir


def export(  # noqa: PLR0917 - typer reads the options of a command from its arguments
    run_ref: RunRef,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="the directory to write")],
    step: Annotated[int | None, typer.Option("--step", help="the checkpoint of this step; unset: the newest")] = None,
    adapter: Annotated[bool, typer.Option("--adapter", help="the low-rank adapter by itself, as peft opens it")] = False,
    ema: Annotated[bool, typer.Option("--ema", help="the running mean of the weights, where the run keeps one")] = False,
    gated: Annotated[
        bool, typer.Option("--gated", help="only if the gates that evaluate and audit held this checkpoint to have passed")
    ] = False,
) -> None:
    """Write a checkpoint as a Hugging Face model directory, with its model card and bill of materials."""
    from jobs.cards.export import export_with_cards
    from jobs.runs.remote import export_elsewhere
    from jobs.runs.status import find_run

    found = find_run(run_ref)
    if gated:
        step = _passed_step(found, step)
    options = [*(["--adapter"] if adapter else []), *(["--ema"] if ema else [])]
    if not export_elsewhere(found, directory, step, options):
        export_with_cards(found, directory, step, adapter=adapter, ema=ema)
    print(directory)


def _passed_step(run: "RunDir", step: int | None) -> int:
    """The step of the checkpoint that the gates let pass. Raises ConfigError, CheckpointError."""
    from jobs.runs.gates import require_passed
    from jobs.training.model_record import checkpoint_place
    from sharding.checkpoint import newest_complete

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
    from cluster.errors import BackendError, ConfigError
    from jobs.mirror.mirror import is_complete, send_rest
    from jobs.mirror.server import why_away
    from jobs.runs.status import all_runs, find_run

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
    from jobs.mirror.relay import Relay
    from jobs.runs.status import roots

    with suppress(KeyboardInterrupt):
        Relay(roots(), lambda words: print(words, flush=True)).follow(lambda: False)

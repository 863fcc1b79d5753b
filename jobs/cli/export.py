"""The commands `export` (write a run's model) and `sync` (send runs to W&B)."""

import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ropewalk.jobs.cli import complete
from ropewalk.jobs.cli.complete import AsJson, RunRef
from ropewalk.jobs.cli.json_output import print_json
from ropewalk.jobs.cli.known_runs import print_elsewhere

if TYPE_CHECKING:
    from ropewalk.cluster.run.directory import RunDir


def export(  # noqa: PLR0917 - typer reads the options of a command from its arguments
    run_ref: RunRef,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="directory to write; with --format gguf: the file")],
    step: Annotated[int | None, typer.Option("--step", help="export the checkpoint of this step; unset: the newest")] = None,
    adapter: Annotated[bool, typer.Option("--adapter", help="export only the LoRA adapter, in peft's format")] = False,
    best: Annotated[
        bool, typer.Option("--best", help="export the checkpoint with the best validation (needs validation.keep_best)")
    ] = False,
    ema: Annotated[bool, typer.Option("--ema", help="export the moving average of the weights, if the run has one")] = False,
    gated: Annotated[
        bool, typer.Option("--gated", help="export only if this checkpoint passed its gates of evaluate and audit")
    ] = False,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar="float32|bfloat16",
            help="number format of the weights; unset: that of training",
        ),
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format", metavar="hf|gguf[:TYPE]", help="hf, or a file for llama.cpp: gguf (in F32), gguf:Q8_0, gguf:Q4_K ..."
        ),
    ] = "hf",
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint as a Hugging Face directory with model card and bill of materials, or as a GGUF file."""
    from ropewalk.cluster.errors import ConfigError
    from ropewalk.cluster.run.files import require_empty
    from ropewalk.jobs.runs.show.remote import export_on_cluster
    from ropewalk.jobs.runs.show.status import find_run

    run = find_run(run_ref)
    if dtype not in (None, "float32", "bfloat16"):
        raise ConfigError(f"--dtype: unknown number format {dtype!r}; use float32 or bfloat16")
    if best and step is not None:
        raise ConfigError("--best and --step name two checkpoints; leave one of them out")
    if form == "hf":
        require_empty(directory)
    if gated:
        step = _passed_step(run, step, best=best)
        best = False
    options = [option for option, enabled in (("--adapter", adapter), ("--ema", ema), ("--best", best)) if enabled]
    options += [] if dtype is None else ["--dtype", dtype]

    def write(target: Path) -> None:
        if not export_on_cluster(run, target, step, options):
            if step is not None:
                _check_step(run, step)
            sys.stderr.write(f"exporting {run.id} to {directory} ...\n")
            from ropewalk.jobs.models.cards.export import export_with_cards

            export_with_cards(run, target, step, adapter=adapter, ema=ema, best=best, dtype=dtype)

    if form == "hf":
        write(directory)
    else:
        _write_gguf(run.id, write, directory, form, adapter=adapter)
    if as_json:
        print_json({"run": run.id, "path": str(directory), "format": form})
    else:
        print(directory)


def _check_step(run: "RunDir", step: int) -> None:
    """Raise ConfigError unless the run has a checkpoint of this step, complete or not."""
    from ropewalk.cluster.errors import ConfigError
    from ropewalk.jobs.training.loop.architecture.model_record import checkpoint_folder
    from ropewalk.sharding.checkpoints.layout import listed_steps, steps_in

    folder = checkpoint_folder(run)
    steps = sorted(listed_steps(folder).union(steps_in(folder)))
    if step not in steps:
        available = f"those of steps {', '.join(map(str, steps))}" if steps else "none yet"
        raise ConfigError(f"--step {step}: {run.id} has no such checkpoint; it has {available}")


def _write_gguf(name: str, write: Callable[[Path], None], target: Path, form: str, *, adapter: bool) -> None:
    """Export to a temporary directory and convert that to GGUF. Raises ConfigError."""
    import torch

    from ropewalk.cluster.errors import ConfigError
    from ropewalk.jobs.inference.gguf.gguf import check_type, write_gguf
    from ropewalk.jobs.inference.gguf.gguf_types import UNQUANTIZED
    from ropewalk.jobs.inference.scoring.open_model import open_model

    kind, _, type_name = form.partition(":")
    if kind != "gguf":
        raise ConfigError(f"--format: unknown format {form!r}; use hf, gguf or gguf:TYPE")
    if adapter:
        raise ConfigError("--adapter writes peft's format, not GGUF; without it the file has the adapter merged")
    check_type(type_name := type_name or UNQUANTIZED)
    if target.exists():
        raise ConfigError(f"{target}: exists; name a new file")
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.absolute().parent, prefix=".export-") as folder:
        write(Path(folder) / "model")
        model = open_model(str(Path(folder) / "model"), device=torch.device("cpu"))
        write_gguf(model, target, type_name, name=name)


def _passed_step(run: "RunDir", step: int | None, *, best: bool) -> int:
    """Return the step of the selected checkpoint. Raises ConfigError if it has not passed its gates, CheckpointError."""
    from ropewalk.jobs.runs.models.gates import require_passed
    from ropewalk.jobs.training.loop.architecture.model_record import checkpoint_folder
    from ropewalk.jobs.training.loop.weights.content_hash import hash_of_checkpoint
    from ropewalk.jobs.training.loop.weights.load_checkpoint import best_step
    from ropewalk.sharding.checkpoints.stored_tensors import newest_complete

    if best:
        step = best_step(run)
    if step is None:
        step = newest_complete(checkpoint_folder(run))[1].step
    require_passed(run, step, hash_of_checkpoint(run, step), run.path.parent)
    return step


def sync(
    run_ref: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="send only this run; unset: all", autocompletion=complete.runs)
    ] = None,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow",
            help="keep sending all runs, including new ones, and let runs on several clusters start on one, until Ctrl-C",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON object per run, with --follow per message")] = False,
) -> None:
    """Send to W&B what it is missing of your runs; for login nodes of clusters whose compute nodes have no network."""
    from ropewalk.cluster.errors import BackendError, ConfigError
    from ropewalk.jobs.runs.mirror.mirror import is_complete, send_rest
    from ropewalk.jobs.runs.mirror.server import unavailable_reason
    from ropewalk.jobs.runs.show.status import all_runs, find_run

    if follow:
        if run_ref:
            raise ConfigError("sync --follow sends all runs; leave RUN out")
        return _follow(as_json)
    unsent = [run for run in ([find_run(run_ref)] if run_ref else all_runs()) if run.attempts() and not is_complete(run)]
    if unsent and (away := unavailable_reason()):
        raise BackendError(f"{len(unsent)} runs have lines that W&B is missing, but {away}; run `ropewalk sync` again later")
    if not unsent and not as_json:
        print("nothing to send")
        if not run_ref:
            print_elsewhere("sync")
    for run in unsent:
        lines = send_rest(run)
        if as_json:
            print_json({"run": run.id, "lines": lines})
        else:
            print(f"{run.id}: {lines} lines")
    return None


def _follow(as_json: bool) -> None:
    from ropewalk.jobs.cli.siblings import StartLocks
    from ropewalk.jobs.runs.mirror.relay import Relay
    from ropewalk.jobs.runs.show.status import roots

    def say(line: str) -> None:
        if as_json:
            print_json({"time": time.time(), "message": line})
        else:
            print(line, flush=True)

    with suppress(KeyboardInterrupt), StartLocks(say).answering():
        Relay(roots(), say).follow(lambda: False)

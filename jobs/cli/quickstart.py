"""`ropewalk quickstart`: preprocess, train and evaluate on text that every machine has, and kill a rank on the way."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ropewalk.cluster.errors import RopewalkError
from ropewalk.cluster.gpus import machine_devices
from ropewalk.cluster.process.kill import writers_of
from ropewalk.cluster.run.directory import RUNS_VARIABLE, RunDir, runs_root
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.runs.show.follow import follow
from ropewalk.jobs.runs.show.plots import plot_run
from ropewalk.jobs.runs.submit.submit import configure, submit

RANKS = 2  # each a node of its own, so that one of them can die
PROMPTS = ["def __init__(self, ", "The following functions are defined:\n\n", "import os\nimport "]
# packages of the standard library with much prose or code of one style; a version that lacks one loses nothing
_PACKAGES = (
    "asyncio concurrent ctypes email html http importlib json logging multiprocessing pydoc_data unittest urllib wsgiref xml"
)


@dataclass
class Recovery:
    """How the run recovered when one of its ranks was killed."""

    killed_at_step: int = 0
    resumed_at_step: int = 0  # the first step that the new group completed
    seconds: float = 0.0  # from the kill to the end of that step


def corpus() -> list[str]:
    """Globs of the standard library's sources and documentation, and of the installed packages' texts."""
    standard, site = Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))
    globs = [standard / "*.py", *(standard / name / "**" / "*.py" for name in _PACKAGES.split())]
    globs += [site / "**" / f"*.{ending}" for ending in ("md", "rst", "txt")]
    return [str(glob) for glob in globs if any(True for _ in Path(glob.anchor).glob(str(glob.relative_to(glob.anchor))))]


def usable_gpus() -> int:
    """The number of GPUs that torch can use here; another process counts them, since counting may start CUDA."""
    found = len(machine_devices())
    if not found:
        return 0
    words = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
    looked = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=False)
    return min(found, int(looked.stdout)) if looked.stdout.strip().isdecimal() else 0


def settings(directory: Path, steps: int, gpus: int = 0) -> dict[str, dict[str, Any]]:
    """The configurations of the three jobs. The two ranks get a GPU each if there are two, else they compute on the CPU, since
    NCCL does not let ranks share one.
    """
    data = str(directory / "data")
    return {
        "preprocess": {
            "name": "quickstart-data",
            "input": corpus(),
            "output": data,
            "tokenizer": {"train": 4096, "sample_mib": 6},
            "validation_fraction": 0.04,
            "min_chars": 200,
        },
        "pretrain": {
            "name": "quickstart-train",
            "data": data,
            "model": {"preset": "tiny"},
            "seq_len": 256,
            "steps": steps,
            "batch": {"global_batch": 16, "micro_batch": 8},
            "optim": {"lr": 3.0e-3, "warmup_steps": min(20, steps // 5), "schedule": "cosine"},
            "checkpoint": {"every_steps": max(5, steps // 12), "keep": 3},
            "validation": {"every_steps": max(10, steps // 3), "max_sequences": 64},
            "resources": {"nodes": 2, "ranks_per_node": 1, **({"gpus": 1} if gpus >= RANKS else {})},
        },
        "evaluate": {
            "name": "quickstart-evaluate",
            "data": data,
            "seq_len": 256,
            "max_sequences": 200,
            "generate": {"prompts": PROMPTS, "max_new_tokens": 40},
        },
    }


def where_it_trains(gpus: int) -> str:
    """A line that says on what the two ranks compute."""
    if gpus >= RANKS:
        return f"{RANKS} of the {gpus} GPUs here train the model, one for each rank"
    why = "there is no GPU that torch can use" if not gpus else f"{gpus} GPU is too few for {RANKS} ranks, which need one each"
    return f"the model is trained on the CPU: {why}"


def quickstart(directory: Path, console: Console, steps: int) -> None:
    """Run the three jobs below `directory`, then print their results."""
    started = time.monotonic()
    directory = directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(directory / "data", ignore_errors=True)
    elsewhere = runs_root() != directory / "runs"
    os.environ[RUNS_VARIABLE] = str(directory / "runs")
    gpus = usable_gpus()
    jobs = settings(directory, steps, gpus)
    console.rule("1/3  documents to shards, on Ray actors")
    data = _run("preprocess", jobs["preprocess"], directory, console)
    console.rule("2/3  shards to a model, on two nodes; one rank is killed on the way")
    console.print(where_it_trains(gpus))
    recovery = Recovery()
    training = _run("pretrain", jobs["pretrain"], directory, console, recovery)
    console.rule("3/3  the model is scored on text that it has not seen")
    jobs["evaluate"]["model"] = str(training.path)
    scored = _run("evaluate", jobs["evaluate"], directory, console)
    picture = plot_run(training, directory / "curves.png")
    console.rule("results")
    _report(console, data, training, scored, recovery)
    console.print(_bold("curves"), f"  {os.path.relpath(picture)}")
    console.print(_bold("data"), f"    {os.path.relpath(directory / 'data')}/manifest.json")
    console.print(_bold("run"), f"     {os.path.relpath(training.path)}  (metrics.jsonl, events/, checkpoints/, wandb/)")
    console.print(_bold("seconds"), f" {time.monotonic() - started:.0f}")
    console.print("\nTo go on in this shell:")
    for line in how_to_go_on(directory, elsewhere):
        console.print(f"  {line}", highlight=False, soft_wrap=True)
    console.print(
        "\nNow with your own text: change", _bold("input"), f"in {os.path.relpath(directory / 'preprocess.yaml')}, then"
    )
    for job in jobs:
        console.print(f"  ropewalk run {job} -c {os.path.relpath(directory / job)}.yaml", highlight=False)


def how_to_go_on(directory: Path, elsewhere: bool) -> list[str]:
    """What a shell must be told so that `ropewalk` is a command there, and finds the runs (`elsewhere`: not where it looks)."""
    lines, activate = [], Path(sys.prefix) / "bin/activate"
    here = shutil.which("ropewalk")
    if activate.is_file() and (here is None or Path(here).parent != activate.parent):
        lines.append(f"source {shlex.quote(os.path.relpath(activate))}")
    if elsewhere:
        lines.append(f"export {RUNS_VARIABLE}={shlex.quote(str(directory / 'runs'))}")
    return [*lines, "ropewalk ps --all"]


def _run(job: str, values: dict[str, Any], directory: Path, console: Console, recovery: Recovery | None = None) -> RunDir:
    """Write a job file and run it to its end. Raises RopewalkError unless it succeeds."""
    path = directory / f"{job}.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    console.print(f"$ ropewalk run {job} -c {os.path.relpath(path)}", style="bold", highlight=False)
    run = submit(job, configure(job, path, []), command=["ropewalk", "quickstart"])
    if recovery is not None:
        at_step = int(values["steps"]) * 2 // 5
        threading.Thread(target=_kill_a_rank, args=(run, at_step, recovery), name="killer", daemon=True).start()
    follow(run, console)
    outcome = run.last_outcome()
    if outcome is None or outcome.state is not RunState.SUCCEEDED:
        cause = f"{outcome.state}: {outcome.cause}" if outcome else "no process runs it any more"
        raise RopewalkError(f"{run.id} did not succeed: {cause}; see `ropewalk logs {os.path.relpath(run.path)}`")
    return run


def _newest_step(run: RunDir) -> int:
    return max((int(line["step"]) for line in run.read_metrics() if "train/loss" in line), default=0)


def _kill_a_rank(run: RunDir, at_step: int, recovery: Recovery) -> None:
    """Send SIGKILL to rank 1 at a step of the run, and measure the time to the next completed step."""
    while _newest_step(run) < at_step:
        time.sleep(0.1)
    writers_of(run.log_dir(1) / "rank-1.log")[0].kill()
    killed = time.time()
    recovery.killed_at_step = _newest_step(run)
    while not (formed := [e for e in run.read_events() if e["event"] == "first_step" and e["time"] > killed]):
        time.sleep(0.05)
    recovery.resumed_at_step = int(formed[0]["step"])
    recovery.seconds = float(formed[0]["time"]) - killed


def _report(console: Console, data: RunDir, training: RunDir, scored: RunDir, recovery: Recovery) -> None:
    """Print the table at the end, and a sample of the model's text."""
    found, trained, scores = data.results(), training.results(), scored.results()
    losses = [line["train/loss"] for line in training.read_metrics() if "train/loss" in line]
    table = Table(show_header=False, box=None, pad_edge=False)
    rows = {
        "documents": f"{found['documents']:,} kept, {found['rejected']:,} rejected, each with its reason",
        "tokens": f"{found['tokens']:,} in {found['shards']} shards",
        "loss, first step → last": f"{losses[0]:.3f} → {trained['train/loss']:.3f} nats a token",
        "loss on unseen text": f"{scores['loss']:.3f} ± {scores['standard_error']:.3f} (n = {scores['n']} sequences)",
        "a unigram model's": f"{scores['unigram_loss']:.3f}",
        "bits per byte on unseen text": f"{scores['bits_per_byte']:.3f}",
        "rank 1 killed (SIGKILL)": f"at step {recovery.killed_at_step}; next step, {recovery.resumed_at_step}, "
        f"complete {recovery.seconds:.1f} s later, without anyone's help",
    }
    for name, value in rows.items():
        table.add_row(_bold(name), value)
    console.print(table)
    sample = scores["generations"][0]
    console.print(_bold("\nit writes"), Text.assemble(sample["prompt"], (sample["text"], "italic")), "\n")


def _bold(words: str) -> Text:
    return Text(words, style="bold")

"""`ropewalk quickstart`: preprocess, train and evaluate on local text, and kill a rank during training."""

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

RANKS = 2  # one per node, so that one of them can be killed
PROMPTS = ["def __init__(self, ", "The following functions are defined:\n\n", "import os\nimport "]
# packages of the standard library with much prose, `pydoc_data` with the documentation of the language; missing ones are skipped
_PACKAGES = (
    "asyncio concurrent ctypes email html http importlib json logging multiprocessing pydoc_data unittest urllib wsgiref xml"
)


@dataclass
class Recovery:
    """Recovery of the training run from the kill of one of its ranks."""

    killed_at_step: int = 0
    resumed_at_step: int = 0  # first step completed by the new group
    seconds: float = 0.0  # from the kill to the completion of that step


def corpus() -> list[str]:
    """Return globs of the standard library's sources and documentation, which are the same on every machine."""
    standard = Path(sysconfig.get_path("stdlib"))
    globs = [standard / "*.py", *(standard / name / "**" / "*.py" for name in _PACKAGES.split())]
    return [str(glob) for glob in globs if any(True for _ in Path(glob.anchor).glob(str(glob.relative_to(glob.anchor))))]


def usable_gpus() -> int:
    """Return the number of GPUs that torch can use, counted in a child process because counting may initialize CUDA."""
    num_devices = len(machine_devices())
    if not num_devices:
        return 0
    code = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return min(num_devices, int(result.stdout)) if result.stdout.strip().isdecimal() else 0


def settings(directory: Path, steps: int, gpus: int = 0) -> dict[str, dict[str, Any]]:
    """Return the configurations of the three jobs. All ranks get a GPU each, or use the CPU: NCCL does not let them share one."""
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
            "resources": {"nodes": 2, "ranks_per_node": 1, "gpus": 1 if gpus >= RANKS else 0},
        },
        "evaluate": {
            "name": "quickstart-evaluate",
            "data": data,
            "seq_len": 256,
            "max_sequences": 200,
            "resources": {"gpus": 1 if gpus >= RANKS else 0},
            "generate": {"prompts": PROMPTS, "max_new_tokens": 40},
        },
    }


def device_notice(gpus: int) -> str:
    """Return a sentence that names the devices used for training."""
    if gpus >= RANKS:
        return f"training uses {RANKS} of the {gpus} GPUs, one per rank"
    reason = "torch finds no usable GPU" if not gpus else f"{gpus} GPU is too few for {RANKS} ranks, which need one each"
    return f"training uses the CPU: {reason}"


def quickstart(directory: Path, console: Console, steps: int) -> None:
    """Run the three jobs in `directory` and print their results."""
    started = time.monotonic()
    directory = directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(directory / "data", ignore_errors=True)
    set_root = runs_root() != directory / "runs"
    os.environ[RUNS_VARIABLE] = str(directory / "runs")
    gpus = usable_gpus()
    jobs = settings(directory, steps, gpus)
    console.rule("1/3  preprocess: documents to shards")
    data = _run("preprocess", jobs["preprocess"], directory, console)
    console.rule("2/3  pretrain: a model on two nodes; one rank gets killed")
    console.print(device_notice(gpus))
    recovery = Recovery()
    training = _run("pretrain", jobs["pretrain"], directory, console, recovery)
    console.rule("3/3  evaluate: score the model on held-out text")
    jobs["evaluate"]["model"] = str(training.path)
    scored = _run("evaluate", jobs["evaluate"], directory, console)
    picture = plot_run(training, directory / "curves.png")
    console.rule("results")
    _print_results(console, data, training, scored, recovery)
    console.print(_bold("curves"), f"  {os.path.relpath(picture)}")
    console.print(_bold("data"), f"    {os.path.relpath(directory / 'data')}/manifest.json")
    console.print(_bold("run"), f"     {os.path.relpath(training.path)}  (metrics.jsonl, events/, checkpoints/, wandb/)")
    console.print(_bold("seconds"), f" {time.monotonic() - started:.0f}")
    console.print("\nTo continue in this shell:")
    for line in next_commands(directory, set_root=set_root):
        console.print(f"  {line}", highlight=False, soft_wrap=True)
    console.print("\nTo use your own text, change", _bold("input"), f"in {os.path.relpath(directory / 'preprocess.yaml')}, then")
    for job in jobs:
        console.print(f"  ropewalk run -c {os.path.relpath(directory / job)}.yaml", highlight=False)


def next_commands(directory: Path, *, set_root: bool) -> list[str]:
    """Return shell commands that put `ropewalk` on the PATH, set the runs' root if `set_root`, and list the runs."""
    lines, activate = [], Path(sys.prefix) / "bin/activate"
    installed = shutil.which("ropewalk")
    if activate.is_file() and (installed is None or Path(installed).parent != activate.parent):
        lines.append(f"source {shlex.quote(os.path.relpath(activate))}")
    if set_root:
        lines.append(f"export {RUNS_VARIABLE}={shlex.quote(str(directory / 'runs'))}")
    return [*lines, "ropewalk ps --all"]


def _run(job: str, values: dict[str, Any], directory: Path, console: Console, recovery: Recovery | None = None) -> RunDir:
    """Write a job file and run it. Raises RopewalkError if the run does not succeed."""
    path = directory / f"{job}.yaml"
    path.write_text(yaml.safe_dump({"run": job, **values}, sort_keys=False, allow_unicode=True))
    console.print(f"$ ropewalk run -c {os.path.relpath(path)}", style="bold", highlight=False)
    run = submit(job, configure(job, path, []), command=["ropewalk", "quickstart"])
    if recovery is not None:
        at_step = int(values["steps"]) * 2 // 5
        threading.Thread(target=_kill_a_rank, args=(run, at_step, recovery), name="killer", daemon=True).start()
    follow(run, console)
    outcome = run.last_outcome()
    if outcome is None or outcome.state is not RunState.SUCCEEDED:
        cause = f"{outcome.state}: {outcome.cause}" if outcome else "its processes are gone"
        raise RopewalkError(f"{run.id} did not succeed: {cause}; see `ropewalk logs {os.path.relpath(run.path)}`")
    return run


def _newest_step(run: RunDir) -> int:
    return max((int(line["step"]) for line in run.read_metrics() if "train/loss" in line), default=0)


def _kill_a_rank(run: RunDir, at_step: int, recovery: Recovery) -> None:
    """Kill rank 1 at a given step, and measure the time to the next completed step."""
    while _newest_step(run) < at_step:
        time.sleep(0.1)
    writers_of(run.log_dir(1) / "rank-1.log")[0].kill()
    killed = time.time()
    recovery.killed_at_step = _newest_step(run)
    while not (first_steps := [e for e in run.read_events() if e["event"] == "first_step" and e["time"] > killed]):
        time.sleep(0.05)
    recovery.resumed_at_step = int(first_steps[0]["step"])
    recovery.seconds = float(first_steps[0]["time"]) - killed


def _print_results(console: Console, data: RunDir, training: RunDir, scored: RunDir, recovery: Recovery) -> None:
    """Print the table of results and a sample of generated text."""
    prepared, trained, scores = data.results(), training.results(), scored.results()
    losses = [line["train/loss"] for line in training.read_metrics() if "train/loss" in line]
    table = Table(show_header=False, box=None, pad_edge=False)
    rows = {
        "documents": f"{prepared['documents']:,} kept, {prepared['rejected']:,} rejected, each with its reason",
        "tokens": f"{prepared['tokens']:,} in {prepared['shards']} shards",
        "loss, first step → last": f"{losses[0]:.3f} → {trained['train/loss']:.3f} nats a token",
        "loss on held-out text": f"{scores['loss']:.3f} ± {scores['standard_error']:.3f} (n = {scores['n']} sequences)",
        "loss of a unigram model": f"{scores['unigram_loss']:.3f}",
        "bits per byte on held-out text": f"{scores['bits_per_byte']:.3f}",
        "rank 1 killed (SIGKILL)": f"at step {recovery.killed_at_step}; next step, {recovery.resumed_at_step}, "
        f"complete {recovery.seconds:.1f} s later, without help",
    }
    for name, value in rows.items():
        table.add_row(_bold(name), value)
    console.print(table)
    sample = scores["generations"][0]
    console.print(_bold("\nsample"), Text.assemble(sample["prompt"], (sample["text"], "italic")), "\n")


def _bold(text: str) -> Text:
    return Text(text, style="bold")

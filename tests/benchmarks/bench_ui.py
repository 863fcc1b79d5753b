"""Seconds of `ropewalk ui` until its first list of many runs, with sparklines, and until many long curves.

    python -m tests.benchmarks.bench_ui [--runs 1000] [--curves 50] [--steps 10000] [--peers build/peers]

Prints one JSON object, and one for each peer, which stands in a virtual environment of its own below PEERS. Goals: a list of
1,000 runs within 1 s of the first request to a fresh process, and 50 curves of 10,000 steps 1 s later. Other runs have 200 steps.

`wandb leet` (0.31) is no row: its list has names alone, and the values of a run when one selects it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import append_lines
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.results.metrics import metric_line

SHORT_STEPS = 200
PEERS = ("trackio", "mlflow")
VALUES = {f"train/{name}": 1.5 for name in ("gradient_norm", "learning_rate", "tokens_per_second", "update_seconds")}
VALUES |= {f"goodput/{name}_seconds": 1234.5678 for name in ("queued", "starting", "training", "saving", "redone")}


def make_run(root: Path, number: int, steps: int) -> RunDir:
    """Make a training that has succeeded, with lines of metrics as trainings write them."""
    config = {"steps": steps, "seed": number, "optim": {"lr": 1e-3 * (1 + number % 7)}}
    record = {"job": "pretrain", "cluster": "local", "engine": "ranks", "resources": {}, "created": 1e9, "config": config}
    run = RunDir.create(f"run-{number:04d}", record, root)
    attempt = run.begin_attempt(handle="local:1")
    append_lines(
        run.metrics,
        [metric_line(attempt, step, {"train/loss": 5 / step, **VALUES}, 1000.0 + step) for step in range(1, steps + 1)],
    )
    run.write_outcome(attempt, Outcome(state=RunState.SUCCEEDED, exit_code=0, cause="done", started=1000.0, ended=2000.0))
    return run


def main() -> None:
    """Make the runs, start the command, and measure two requests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--curves", type=int, default=50)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--peers", type=Path, default=Path("build/peers"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            make_run(Path(folder), number, options.steps if number < options.curves else SHORT_STEPS)
            for number in range(options.runs)
        ]
        environment = {**os.environ, "ROPEWALK_RUNS": folder}
        begun = time.perf_counter()
        command = [sys.executable, "-m", "ropewalk.jobs.cli", "ui"]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            link = process.stdout.readline().strip()
            figures = {"start_seconds": time.perf_counter() - begun}
            with httpx.Client(base_url=link.partition("?")[0], follow_redirects=True, timeout=600) as client:
                client.get(link)
                named = [("run", run.id) for run in runs[: options.curves]]
                for name, path, parameters in (
                    ("list", "/api/runs", []),
                    ("curves", "/api/curves", [*named, ("key", "train/loss")]),
                    ("comparison", "/api/comparison", named),
                ):
                    begun, busy = time.perf_counter(), _cpu_seconds(process.pid)
                    answer = client.get(path, params=parameters).raise_for_status()
                    figures[f"{name}_seconds"] = time.perf_counter() - begun
                    figures[f"{name}_cpu_seconds"] = _cpu_seconds(process.pid) - busy
                    figures[f"{name}_kilobytes"] = len(answer.content) / 1000
            process.terminate()
    sizes = {"runs": options.runs, "curves": options.curves, "steps": options.steps}
    print(json.dumps({**sizes, **{name: round(value, 3) for name, value in figures.items()}}), flush=True)
    for peer in PEERS:
        _measure_peer(peer, options.peers / peer, options.runs)


def _measure_peer(peer: str, folder: Path, runs: int) -> None:
    """Print the figures of a peer, or how to install it."""
    if not (folder / "bin/python").exists():
        remedy = f"python -m venv {folder} && {folder}/bin/pip install {peer}"
        print(json.dumps({"peer": peer, "skipped": f"not installed: {remedy}"}), flush=True)
        return
    command = [folder / "bin/python", Path(__file__).with_name("ui_peers.py"), peer, "--runs", str(runs)]
    subprocess.run(command, check=True)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()

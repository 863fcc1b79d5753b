"""Seconds that trackio's and MLflow's pages take for a list of many runs with last values; `bench_ui --peers` runs it.

    PYTHON tests/benchmarks/ui_peers.py trackio|mlflow [--runs 1000] [--steps 24]

PYTHON is an interpreter that has the peer (`python -m venv V; V/bin/pip install mlflow`). Neither needs a log-in or a network.
Prints one JSON object. Times are from the start of the server's process, and from the first request for the list:

- trackio: its page "Runs" asks for each run apart, and has no values. Asked here is what its page "Metrics" asks: the curves of
  64 runs a request, thinned to 24 points, of which the last is the last value.
- MLflow: one search for 1,000 runs, which has their last values; its page asks for 100 at a time. Its database is SQLite.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = ["train/loss", *(f"train/figure_{number}" for number in range(4)), *(f"goodput/class_{number}" for number in range(5))]
BATCH, POINTS = 64, 24  # most runs of a request to trackio, and points of a curve
START_SECONDS = 120.0


def main() -> None:
    """Fill a peer's database, start its server, and time the list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=["trackio", "mlflow"])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=24)
    options = parser.parse_args()
    fill, command, ask = {"trackio": (_fill_trackio, _trackio, _ask_trackio), "mlflow": (_fill_mlflow, _mlflow, _ask_mlflow)}[
        options.peer
    ]
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"TRACKIO_DIR": folder, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/runs.db", "NO_PROXY": "127.0.0.1"}
        fill(options.runs, options.steps)
        port = _free_port()
        figures = timed(command(port, Path(folder)), f"http://127.0.0.1:{port}", ask)
    assert figures.pop("listed") == options.runs
    print(json.dumps({"peer": options.peer, "runs": options.runs, **figures}))


def timed(command: list[str], address: str, ask: Callable[[str], int]) -> dict[str, float]:
    """Start a server and ask for its list."""
    silent = subprocess.DEVNULL
    begun = time.perf_counter()
    with subprocess.Popen(command, stdout=silent, stderr=silent, start_new_session=True) as process:
        try:
            while not _answers(address):
                assert time.perf_counter() - begun < START_SECONDS, f"{command[0]} did not start"
                time.sleep(0.05)
            started = time.perf_counter()
            listed = ask(address)
            ended = time.perf_counter()
        finally:
            os.killpg(process.pid, 15)
    return {"listed": listed, "start_seconds": round(started - begun, 2), "list_seconds": round(ended - started, 2)}


def _fill_trackio(runs: int, steps: int) -> None:
    from trackio.sqlite_storage import SQLiteStorage

    for number in range(runs):
        lines = [dict.fromkeys(NAMES, 5 / (step + 1)) for step in range(steps)]
        SQLiteStorage.bulk_log("project", f"run-{number:04d}", lines, list(range(steps)), config={"seed": number})


def _trackio(port: int, _: Path) -> list[str]:
    call = f"import trackio; trackio.show(project='project', open_browser=False, block_thread=True, server_port={port})"
    return [sys.executable, "-c", call]


def _ask_trackio(address: str) -> int:
    def call(name: str, **parameters: Any) -> Any:
        answer = _post(f"{address}/api/{name}", parameters)
        return answer.get("data", answer) if isinstance(answer, dict) else answer

    runs = [{"run": run["name"], "run_id": run["id"]} for run in call("get_runs_for_project", project="project")]
    batches = [runs[start : start + BATCH] for start in range(0, len(runs), BATCH)]
    return sum(len(call("get_logs_batch", project="project", runs=batch, max_points=POINTS)) for batch in batches)


def _fill_mlflow(runs: int, steps: int) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient()
    for number in range(runs):
        run = client.create_run("0", run_name=f"run-{number:04d}").info.run_id
        client.log_batch(run, [Metric(name, 5 / (step + 1), 1000 + step, step) for name in NAMES for step in range(steps)])
        client.set_terminated(run)


def _mlflow(port: int, folder: Path) -> list[str]:
    options = ["--backend-store-uri", os.environ["MLFLOW_TRACKING_URI"], "--artifacts-destination", str(folder / "artifacts")]
    return [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1", *options]


def _ask_mlflow(address: str) -> int:
    answer = _post(f"{address}/api/2.0/mlflow/runs/search", {"experiment_ids": ["0"], "max_results": 1000})
    return sum(any(metric["key"] == NAMES[0] for metric in run["data"]["metrics"]) for run in answer["runs"])


def _post(address: str, values: dict[str, Any]) -> Any:
    request = urllib.request.Request(address, json.dumps(values).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=START_SECONDS) as answer:
        return json.loads(answer.read())


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=START_SECONDS):
            return True
    except OSError:
        return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


if __name__ == "__main__":
    main()

"""Cost of mirroring runs to W&B: a relay of live runs, finished runs sent at once, a sidecar, and reporting in the training loop.

    python -m tests.benchmarks.bench_mirror [--live 200 --seconds 60] [--finished 1000 --lines 10000] [--sidecar 60] [--steps 400]

Real wandb-core and a server in a process of its own that counts lines; CPU seconds are apart for Python, wandb-core and server,
so that one sees which of them limits. 0 leaves a part out. Prints one JSON object a part.

Measured: 2026-11-29 on a busy machine. Sidecar: wandb-core's part is 0.4 (online) and 0.27 (offline) of it. Lines of finished
runs of 5,000, a CPU-second: Python 5,500 with its start, wandb-core 8,400, the recording server 222,000. Relay: delay at the 99th
percentile 1.70 s; wandb-core takes 10.3% of a core beside Python's 8.6%.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import append_lines
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.results.metrics import metric_line
from tests.fakes.wandb_server import HISTORY, WandbServer, serving

ROOT = Path(__file__).parents[2]
HOUR = 3600.0
STEP_SECONDS = 0.05  # of the loop whose cost is looked at: a short one


class Count:
    """Stands for the lines of a run: how many there are, and the last."""

    def __init__(self) -> None:
        self.count, self.last = 0, {}

    def __len__(self) -> int:
        return self.count

    def get(self, number: int) -> Any:
        return self.last if number == self.count - 1 else None


@dataclass
class CountingServer(WandbServer):
    """Counts lines instead of keeping them, and notes how far behind each request is."""

    behind: list[float] = field(default_factory=list)
    twice: int = 0

    def run(self, name: str, project: str = "") -> Any:
        result = super().run(name, project)
        if not isinstance(result.lines, Count):
            result.lines = Count()  # type: ignore[assignment]
        return result

    def stream(self, name: str, body: dict[str, Any]) -> None:
        part = (body.get("files") or {}).pop(HISTORY, None)
        if part and part["content"]:
            lines: Any = self.run(name).lines
            self.twice += max(0, lines.count - part["offset"])
            lines.count = part["offset"] + len(part["content"])
            first, lines.last = (json.loads(part["content"][index]) for index in (0, -1))
            self.behind += [time.time() - item["_timestamp"] for item in (first, lines.last)]  # the oldest and the newest of it
        super().stream(name, body)

    def told(self) -> dict[str, Any]:
        """Lines received since the last call."""
        behind, self.behind = sorted(self.behind), []
        return {
            "lines": sum(len(run.lines) for run in self.runs.values()),
            "twice": self.twice,
            "requests": self.requests,
            "behind_p50": round(behind[len(behind) // 2], 2) if behind else None,
            "behind_p99": round(behind[len(behind) * 99 // 100], 2) if behind else None,
            "behind_most": round(behind[-1], 2) if behind else None,
            "cpu": sum(os.times()[:2]),
        }


def serve() -> None:
    """The server's process: its address, and what it was told whenever somebody asks by a line."""
    server = CountingServer()
    with serving(server):
        print(server.address, flush=True)
        for _ in sys.stdin:
            print(json.dumps(server.told()), flush=True)


class Bench:
    """A runs' root, a server, and the CPU seconds of whoever mirrors."""

    def __init__(self, home: Path) -> None:
        self.root = home / "runs"
        command = [sys.executable, "-m", "tests.benchmarks.bench_mirror", "--serve"]
        self._server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        variables = {
            "WANDB_BASE_URL": self._answer(),
            "WANDB_API_KEY": "0" * 40,
            "HOME": str(home),
            "ROPEWALK_RUNS": str(self.root),
        }
        self.environment = {**os.environ, **variables, "PYTHONPATH": str(ROOT)}

    def _answer(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().strip()

    def told(self) -> dict[str, Any]:
        """Lines that the server received since the last call."""
        assert self._server.stdin is not None
        self._server.stdin.write("\n")
        self._server.stdin.flush()
        result: dict[str, Any] = json.loads(self._answer())
        return result

    def close(self) -> None:
        """End the server."""
        self._server.kill()
        self._server.wait()

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """A process of the program, against the server."""
        return subprocess.Popen([sys.executable, "-m", *arguments], cwd=ROOT, env=self.environment)

    def make_run(self, name: str, num_lines: int = 0) -> RunDir:
        """A run of this machine; with lines it is over."""
        run = RunDir.create(name, {"job": "pretrain", "config": {"name": name}, "cluster": "local", "code": {}}, self.root)
        run.begin_attempt(handle="local:1")
        if num_lines:
            append_lines(run.metrics, [line(step) for step in range(1, num_lines + 1)])
            run.write_outcome(1, Outcome(state=RunState.SUCCEEDED, exit_code=0, cause="done", ended=time.time()))
        return run


def line(step: int) -> dict[str, Any]:
    """A line as the training loop writes it."""
    train = {"loss": 1 / step, "learning_rate": 1e-3, "gradient_norm": 2.0, "position": 8 * step}
    speed = {"tokens_per_second": 1e4, "mfu": 0.1, "memory_gib": 3.0}
    return metric_line(1, step, {f"train/{name}": float(value) for name, value in {**train, **speed}.items()})


def cpu_seconds(process: subprocess.Popen[bytes]) -> dict[str, float]:
    """CPU seconds of a process and of its wandb-core."""
    results = {"python": 0.0, "wandb-core": 0.0}
    parent = psutil.Process(process.pid)
    for item in (parent, *parent.children(recursive=True)):
        times = item.cpu_times()
        results["wandb-core" if "wandb-core" in item.name() else "python"] += times.user + times.system
    return results


def spent(before: dict[str, float], after: dict[str, float], seconds: float) -> dict[str, float]:
    """Percent of a core."""
    return {name: round(100 * (after[name] - before[name]) / seconds, 2) for name in before}


def wait_for(condition: Any, seconds: float) -> float:
    """The seconds until it holds. Raises AssertionError where it never does."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it takes too long"
        time.sleep(0.1)
    return time.monotonic() - began


def live(bench: Bench, num_runs: int, seconds: int) -> dict[str, Any]:
    """A line a second in each of many runs."""
    runs = [bench.make_run(f"live-{number}") for number in range(num_runs)]
    for run in runs:
        append_lines(run.metrics, [line(1)])
    relay = bench.start("ropewalk.jobs.cli", "sync", "--follow")
    opened = wait_for(lambda: bench.told()["lines"] >= num_runs, HOUR)
    before, received, began = cpu_seconds(relay), bench.told(), time.monotonic()
    for turn in range(seconds):
        for run in runs:
            append_lines(run.metrics, [line(turn + 2)])
        time.sleep(max(0.0, began + turn + 1 - time.monotonic()))
    elapsed = time.monotonic() - began
    after, last = cpu_seconds(relay), bench.told()
    wait_for(lambda: bench.told()["lines"] >= num_runs * (seconds + 1), HOUR)
    relay.terminate()
    relay.wait()
    behind = {name: value for name, value in last.items() if name.startswith("behind")}
    requests = round((last["requests"] - received["requests"]) / elapsed, 1)
    server = round(100 * (last["cpu"] - received["cpu"]) / elapsed, 1)
    cores = spent(before, after, elapsed)
    return {"live": num_runs, "opened_seconds": round(opened, 1), **behind, "percent": cores, "requests_a_second": requests,
            "server_percent": server, "twice": last["twice"]}  # fmt: skip


def finished(bench: Bench, num_runs: int, num_lines: int) -> dict[str, Any]:
    """Runs that are over, sent as quickly as it goes."""
    for number in range(num_runs):
        bench.make_run(f"over-{number}", num_lines)
    before, began = bench.told(), time.monotonic()
    relay = bench.start("ropewalk.jobs.cli", "sync", "--follow")
    existing = cpu_seconds(relay)
    wait_for(lambda: bench.told()["lines"] - before["lines"] >= num_runs * num_lines, 10 * HOUR)
    elapsed, cpu, after = time.monotonic() - began, cpu_seconds(relay), bench.told()
    relay.terminate()
    relay.wait()
    total = num_runs * num_lines
    used = {**{name: cpu[name] - existing[name] for name in cpu}, "server": after["cpu"] - before["cpu"]}
    rates = {name: round(total / seconds) if seconds else None for name, seconds in used.items()}
    return {"finished": num_runs, "lines": total, "lines_a_second": round(total / elapsed), "lines_a_cpu_second": rates,
            "wall_seconds": round(elapsed, 1), "twice": after["twice"]}  # fmt: skip


def sidecar(bench: Bench, seconds: int, *, offline: bool) -> dict[str, Any]:
    """A step a second."""
    run = bench.make_run("beside")
    if offline:
        bench.environment["WANDB_MODE"] = "offline"
    process = bench.start("ropewalk.jobs.runs.mirror.sidecar", str(run.path), "--attempt", "1")
    append_lines(run.metrics, [line(1)])
    wait_for(lambda: (run.wandb / "offline.json").exists() if offline else bench.told()["lines"], HOUR)
    before, began = cpu_seconds(process), time.monotonic()
    for turn in range(seconds):
        append_lines(run.metrics, [line(turn + 2)])
        time.sleep(max(0.0, began + turn + 1 - time.monotonic()))
    after, elapsed = cpu_seconds(process), time.monotonic() - began
    process.terminate()
    process.wait()
    bench.environment.pop("WANDB_MODE", None)
    return {"sidecar": "offline" if offline else "online", "percent": spent(before, after, elapsed)}


def loop(home: Path, steps: int) -> dict[str, Any]:
    """Cost of reporting a step to the training process, its thread included; nothing in it depends on W&B."""
    from ropewalk.jobs.training.loop.report.report import Report
    from ropewalk.jobs.training.loop.report.throughput import Meter
    from ropewalk.jobs.training.loop.update.spikes import LossStatistics
    from ropewalk.jobs.training.loop.update.step import StepStats
    from ropewalk.sharding.group import process_group

    run = RunDir.create("loop", {"job": "pretrain", "config": {}}, home)
    context = JobContext(run=run, attempt=run.begin_attempt())
    context.fence.claim()
    with process_group() as group:
        meter = Meter(group.device, group.world_size, tokens_per_step=4096, flops_per_token=1e6)
        report = Report(context, group, meter, steps=steps, log_every=1)
        figures = {"loss": 1.0, "weight": 1.0, "gradient_norm": 1.0, "learning_rate": 1e-3, "metrics": {}}
        flags = {"applied": True, "stop": False, "save_failed": False}
        before = time.process_time()
        for step in range(1, steps + 1):
            ended = time.perf_counter()
            report.step(StepStats(step=step, position=8 * step, watch=LossStatistics(), ended=ended, **figures, **flags))
            time.sleep(STEP_SECONDS)
        report.flush()
        each = (time.process_time() - before) / steps
        return {"loop_cpu_microseconds_a_step": round(1e6 * each), "percent_of_a_step": round(100 * each / STEP_SECONDS, 2)}


def main() -> None:
    """Measure each part that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"live": 200, "seconds": 60, "finished": 1000, "lines": 10_000, "sidecar": 60, "steps": 400}
    for name, number in parts.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        if options.steps:
            print(json.dumps(loop(home / "loop", options.steps)), flush=True)
        wanted = [
            (options.sidecar, lambda bench: sidecar(bench, options.sidecar, offline=False)),
            (options.sidecar, lambda bench: sidecar(bench, options.sidecar, offline=True)),
            (options.live, lambda bench: live(bench, options.live, options.seconds)),
            (options.finished, lambda bench: finished(bench, options.finished, options.lines)),
        ]
        for number, (item, measure) in enumerate(wanted):
            if item:
                (home / str(number)).mkdir()
                bench = Bench(home / str(number))
                try:
                    print(json.dumps(measure(bench)), flush=True)
                finally:
                    bench.close()


if __name__ == "__main__":
    main()

"""Cost of running a plain script of two ranks, against a tuned torchrun.

Start to first step, CPU time of everything but the script while it trains, and kill -9 of a rank to the next step, if one comes.

    python -m tests.benchmarks.bench_command [--rounds 3] [--seconds 20] [--kills 3]

Prints one JSON object. Both run the same script of two ranks in turn; CPU seconds are those of all processes that were started.

Measured: start 2026-11-29 on a busy machine, 3 rounds. Kills of ours 2026-11-29 on a quiet machine, 5 kills; most of the time
is the script's own imports (torch and torch._dynamo). The rest 2026-11-27: torchrun's group came back within 90 s after 1 of 4
kills, by hand after 6 of 6 in 7.5 s; the agent alone was measured apart.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from ropewalk.cluster.process.kill import end, processes_of, processes_with
from ropewalk.cluster.run.files import read_lines
from tests.patience import Patience, until

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests/benchmarks/stepping.py"
MARK = "ROPEWALK_BENCHMARK"
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=50", "--monitor-interval=0.05"]
TORCHRUN += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
ROPEWALK = ["-m", "ropewalk.jobs.cli", "run", "command", "resources.ranks_per_node=2", "--", sys.executable]
WAYS = {"ropewalk": ROPEWALK, "torchrun": TORCHRUN}


class Running:
    """The script under one of the two."""

    def __init__(self, way: str, folder: Path, pause: float, steps: int) -> None:
        self.mark, self.told, self.folder = {MARK: f"{folder}/{way}"}, folder / f"{way}.jsonl", folder
        variables = {**self.mark, "PYTHONPATH": str(ROOT), "ROPEWALK_RUNS": str(folder / "runs"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *WAYS[way], str(SCRIPT), str(self.told), str(pause), str(steps)]
        self.started = time.time()
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(command, env={**os.environ, **variables}, cwd=folder, stdout=quiet, stderr=quiet)

    def steps(self) -> list[dict[str, float]]:
        return read_lines(self.told)

    def said(self) -> str:
        """Processes at work, and the newest step."""
        return "\n".join([*(" ".join(process.cmdline()) for process in self.processes()), *map(str, self.steps()[-3:])])

    def processes(self) -> list[psutil.Process]:
        """All that were started: by their environment, or by their title, which takes the environment's place."""
        return list({*processes_with(self.mark), *processes_of(self.folder)})

    def cpu_seconds(self, *, all_but_the_script: bool = False) -> float:
        total = 0.0
        for process in self.processes():
            try:
                if all_but_the_script and self._is_rank(process):
                    continue
                times = process.cpu_times()
                total += times.user + times.system
                total += 0.0 if all_but_the_script else times.children_user + times.children_system
            except psutil.Error:
                continue
        return total

    def ranks(self) -> list[psutil.Process]:
        """The script's own processes."""
        return [process for process in self.processes() if self._is_rank(process)]

    def _is_rank(self, process: psutil.Process) -> bool:
        return str(SCRIPT) in process.cmdline()[:2]


@contextmanager
def running(way: str, pause: float = 0.02, steps: int = 100_000) -> Iterator[Running]:
    folder = Path(tempfile.mkdtemp())
    running = Running(way, folder, pause, steps)
    try:
        until(lambda: len(running.steps()) > 0, Patience.STEP)
        yield running
    finally:
        end(running.processes())
        end(running.processes())  # what the first were about to start
        running.process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def start(way: str) -> tuple[float, float]:
    """CPU seconds and seconds to the first step."""
    with running(way) as endpoint:
        return endpoint.cpu_seconds(), endpoint.steps()[0]["time"] - endpoint.started


def recoveries(kills: int) -> dict[str, float]:
    """kill -9 of a rank to the next step, both in turn; and after how many kills none of them came within `Patience.STEP`."""
    result, never = dict[str, list[tuple[float, float]]](), dict[str, int]()
    for way in WAYS:
        took: list[tuple[float, float] | None] = []
        while len(took) < kills:
            with running(way) as endpoint:
                while len(took) < kills:
                    took.append(recovery(endpoint))
                    if took[-1] is None:
                        break  # it is started anew
        result[way], never[way] = [each for each in took if each], took.count(None)
    report = {f"{way} never came back": float(count) for way, count in never.items()}
    for position, unit in enumerate(("cpu_seconds", "seconds")):
        median = {way: statistics.median(each[position] for each in took) for way, took in result.items() if took}
        report |= {f"{way} {unit}": round(value, 3) for way, value in median.items()}
        if median.keys() == WAYS.keys():
            report[f"ratio of {unit}"] = round(median["ropewalk"] / median["torchrun"], 3)
    return report


def recovery(cells: Running) -> tuple[float, float] | None:
    """CPU seconds and seconds from kill -9 of a rank to the next step; None where none comes."""
    reached = len(cells.steps()) + 20
    until(lambda: len(cells.steps()) >= reached, Patience.STEP)
    before, victim = cells.cpu_seconds(), max(cells.ranks(), key=lambda process: process.pid)
    killed = time.time()
    victim.send_signal(signal.SIGKILL)
    try:
        next_step = until(lambda: _next(cells, killed, victim.pid), Patience.STEP, cells.said)
    except AssertionError as error:
        print(error, file=sys.stderr)
        return None
    return cells.cpu_seconds() - before, next_step - killed


def _next(cells: Running, killed: float, pid: int) -> float | None:
    """End of the first step of the new ranks after the kill, or None if none came."""
    times = [line["time"] for line in cells.steps() if line["time"] > killed + 0.1]
    return times[0] if times and pid not in {process.pid for process in cells.ranks()} else None


def idle(way: str, seconds: float) -> float:
    """The share of a core that all but the script takes while it trains."""
    with running(way, pause=0.1) as endpoint:
        until(lambda: len(endpoint.steps()) > 30, Patience.STEP)
        before, since = endpoint.cpu_seconds(all_but_the_script=True), time.monotonic()
        until(lambda: time.monotonic() > since + seconds, Patience.RUN)
        return (endpoint.cpu_seconds(all_but_the_script=True) - before) / (time.monotonic() - since)


def in_turn(measure: Callable[[str], tuple[float, float]], rounds: int) -> dict[str, float]:
    """Medians of both, and the median of the ratios of neighbours."""
    pairs = [{way: measure(way) for way in WAYS} for _ in range(rounds)]
    results = {}
    for position, unit in enumerate(("cpu_seconds", "seconds")):
        results |= {f"{way} {unit}": statistics.median(pair[way][position] for pair in pairs) for way in WAYS}
        results[f"ratio of {unit}"] = statistics.median(pair["ropewalk"][position] / pair["torchrun"][position] for pair in pairs)
    return {name: round(value, 3) for name, value in results.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="in which the share of a core is measured")
    parser.add_argument("--kills", type=int, default=3)
    options = parser.parse_args()
    os.environ["WANDB_MODE"] = "disabled"
    results = {
        "start to first step": in_turn(start, options.rounds),
        "share of a core beside the script": {way: round(idle(way, options.seconds), 4) for way in WAYS},
        "kill -9 to next step": recoveries(options.kills),
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()

"""Preprocess a real corpus with 1, 2 and 4 actors and with random kills: documents/s, MB a CPU-second, identical or not.

    python -m tests.benchmarks.bench_preprocess [--megabytes N] [--kills 5] [--actors 1,2,4]
    python -m tests.benchmarks.bench_preprocess --default 64,256 [--against CHECKOUT] [--pairs 3]

`--default`: `ropewalk run preprocess` with a given tokenizer (32k) and `resources.cpus=2`, of this checkout and of another one in
turn, such as one made by `git worktree add CHECKOUT a7748adc`: CPU seconds of all processes from the command to its end, cores
busy, and threads that run or wait for a core on average, which other users of the machine raise. The corpus is repeated with
other ids up to so many megabytes. Compile the bytecode of both checkouts first (`compileall`), as installations do.

The corpus: $ROPEWALK_CORPUS (a .jsonl.zst), else ../shared/data/corpus.jsonl.zst beside the repository, else the
standard library's sources.
"""

import argparse
import ctypes
import io
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import zstandard

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.manifest import Manifest, read_manifest
from ropewalk.datapipe.tokens.tokenizer import train_tokenizer
from tests.fakes.documents import configure, contents
from tests.fakes.driver import Driver

REPOSITORY = Path(__file__).resolve().parents[2]


def corpus(megabytes: float | None, folder: Path) -> Path:
    """The corpus, or about its first megabytes; a directory of sources where there is none."""
    named = os.environ.get("ROPEWALK_CORPUS")
    path = Path(named) if named else REPOSITORY.parent / "shared/data/corpus.jsonl.zst"
    if not path.is_file():
        return Path(sysconfig.get_path("stdlib")) / "[a-z]*" / "*.py"
    if megabytes is None:
        return path
    part = folder / "part.jsonl.zst"
    with path.open("rb") as packed, zstandard.open(part, "wb") as out:
        lines = io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(packed))
        left = megabytes * 1e6
        while left > 0 and (line := lines.readline()):
            out.write(line)
            left -= len(line)
    return part


class CpuMeter(threading.Thread):
    """CPU seconds of a process and all that it started, sampled, so that the dead count too; and its waits for a core."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: dict[tuple[int, float], float] = {}
        self.waits: dict[str, float] = {}
        self.ended = threading.Event()

    def run(self) -> None:
        me = psutil.Process()
        while not self.ended.wait(0.1):
            for process in me.children(recursive=True):
                try:
                    times = process.cpu_times()
                    self.seen[process.pid, process.create_time()] = times.user + times.system
                    for thread in Path(f"/proc/{process.pid}/task").iterdir():
                        self.waits[str(thread)] = int((thread / "schedstat").read_text().split()[1]) / 1e9
                except (psutil.Error, OSError):
                    continue

    def stop(self) -> float:
        self.ended.set()
        self.join()
        return sum(self.seen.values())


def start(config: Any, runs: Path) -> Driver:
    record = {"config": config.model_dump(mode="json"), "resources": {"cpus": max(config.actors + 1, os.cpu_count() or 1)}}
    return Driver(RunDir.create("bench", record, root=runs).path)


def survive(config: Any, runs: Path, kills: int, draw: random.Random) -> None:
    """Run to the end with `kills` kill -9 at random moments, of a random actor or of the driver's whole group."""
    driver = start(config, runs)
    for number in range(kills):
        try:
            driver.process.wait(timeout=draw.uniform(6, 16))
            print(f"  it ended before kill {number + 1}")
            break
        except subprocess.TimeoutExpired:
            actors = driver.actors()
        kill_actor = bool(actors) and draw.random() < 0.5
        print(f"  kill {number + 1}: {'an actor' if kill_actor else 'the driver and its group'}", flush=True)
        if kill_actor:
            draw.choice(actors).kill()
        else:
            driver.kill()
            driver = start(config, runs)
    driver.finish(timeout_seconds=1200)


def measure(name: str, config: Any, runs: Path, kills: int = 0) -> tuple[str, float, float, Manifest, dict[str, bytes]]:
    meter, began = CpuMeter(), time.monotonic()
    meter.start()
    survive(config, runs, kills, random.Random(7))
    wall, cpu = time.monotonic() - began, meter.stop()
    return name, wall, cpu, read_manifest(StoragePath(config.output)), contents(config.output)


def make_default(checkout: Path, source: Path, folder: Path) -> tuple[float, float, float, dict[str, bytes]]:
    """CPU seconds, seconds of waiting for a core and wall of `ropewalk run preprocess` in a checkout, and the shards."""
    output = folder / "out"
    shutil.rmtree(output, ignore_errors=True)
    env = {**os.environ, "PYTHONPATH": str(checkout / "src"), "ROPEWALK_RUNS": str(folder / "runs"), "WANDB_MODE": "offline"}
    keys = [f"input={source}", f"output={output}", f"tokenizer.path={folder / 'tokenizer'}"]
    meter, began = CpuMeter(), time.monotonic()
    meter.start()
    command = [sys.executable, "-m", "ropewalk.jobs.cli", "run", "preprocess", *keys, "resources.cpus=2"]
    subprocess.run(command, env=env, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, cpu = time.monotonic() - began, meter.stop()
    files = {name: data for name, data in contents(output).items() if name.endswith(".arrow")}
    return cpu, sum(meter.waits.values()), wall, files


def compare_defaults(sizes: list[float], against: Path | None, pairs: int) -> None:
    """Run the default of this checkout and of another one in turn."""
    from tests.benchmarks.bench_data_growth import grown
    from tests.benchmarks.bench_data_path import read_texts

    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: daemons of Ray stay among the children
    with tempfile.TemporaryDirectory(prefix="bench-preprocess-") as name:
        folder = Path(name)
        (folder / "tokenizer").mkdir()
        for file, data in train_tokenizer(read_texts(grown(32, folder)), 32_000).files.items():
            (folder / "tokenizer" / file).write_bytes(data)
        checkouts = [REPOSITORY, *([against.resolve()] if against else [])]
        for megabytes in sizes:
            source = grown(megabytes, folder)
            for _ in range(pairs):
                results = [make_default(checkout, source, folder) for checkout in checkouts]
                for checkout, (cpu, wait, wall, _) in zip(checkouts, results, strict=True):
                    cores = f"{cpu / wall:.2f} cores busy, {(cpu + wait) / wall:.2f} wanted"
                    print(f"{megabytes:.0f} MB, {checkout.name}: {cpu:.1f} CPU s, {wall:.1f} s, {cores}", flush=True)
                if against:
                    same, ratio = "yes" if results[0][3] == results[1][3] else "NO", results[1][0] / results[0][0]
                    print(f"{megabytes:.0f} MB: {ratio:.1f} times less CPU; shards identical: {same}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--megabytes", type=float, help="only about so much of the corpus")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--actors", default="1,2,4")
    parser.add_argument("--default", help="megabytes: only the default run, in CPU seconds")
    parser.add_argument("--against", type=Path, help="another checkout, whose default is run in turn")
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    if options.default:
        return compare_defaults([float(size) for size in options.default.split(",")], options.against, options.pairs)
    with tempfile.TemporaryDirectory(prefix="bench-preprocess-") as name:
        folder = Path(name)
        source = corpus(options.megabytes, folder)
        keys: dict[str, Any] = {"tokenizer": {"train": 8192}, "validation_fraction": 0.01}
        rows = []
        for actors in map(int, options.actors.split(",")):
            rows.append(
                measure(f"{actors} actors", configure(source, folder / f"out-{actors}", actors=actors, **keys), folder / "runs")
            )
            report(rows[-1], rows[0])
        killed = configure(source, folder / "out-killed", actors=2, **keys)
        rows.append(measure(f"2 actors, {options.kills} kills", killed, folder / "runs", options.kills))
        report(rows[-1], rows[0])


def report(
    row: tuple[str, float, float, Manifest, dict[str, bytes]], first: tuple[str, float, float, Manifest, dict[str, bytes]]
) -> None:
    name, wall, cpu, manifest, files = row
    totals = manifest.totals
    print(
        f"{name:20} {totals.documents} documents, {totals.bytes / 1e6:.1f} MB, {len(manifest.shards)} shards: {wall:.1f} s,"
        f" {totals.documents / wall:.0f} documents/s, {totals.bytes / 1e6 / cpu:.2f} MB/CPU-s;"
        f" identical: {'yes' if files == first[4] else 'NO'}",
        flush=True,
    )


if __name__ == "__main__":
    main()

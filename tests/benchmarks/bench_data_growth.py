"""The data path as input grows, on Ray actors: memory of driver and actors, wall time of one and two actors, load of the cores.

    python -m tests.benchmarks.bench_data_growth [--megabytes 50,500] [--actors 1,2] [--stages all] [--backend tokenizers]
    python -m tests.benchmarks.bench_data_growth --short 50000,400000 [--stages all]

The corpus (bench_preprocess's) is repeated with other ids and another last line in each text up to so many megabytes, as one
.jsonl.zst: `--megabytes 1000 --actors 2` is one large compressed file that two actors share. Ray's start is not counted in the
wall, which begins with the first actor; cores are counted as busy by the CPU seconds of driver and actors from then on.
`--short`: so many short documents, some of which are equal or have equal ids, with one process that does all tasks: by how many
bytes a document the driver's peak grows.

Measured: 2026-11-27, a quiet machine, one .jsonl.zst. Without stages the driver has 368 MiB at 50 MB and an actor 479 MiB;
160 MB take two actors 1.75 times less wall (86% of both cores). Short documents: 2026-11-28, peaks of 275.5 and 280.6 MiB;
with all stages the libraries' part differs by some 10 MiB from run to run. 500 MB without stages: 16.2 MB a CPU-second.
"""

import argparse
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import orjson
import psutil
import zstandard

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.manifest import read_manifest
from ropewalk.datapipe.passes.pipeline import make_data_set
from ropewalk.datapipe.passes.progress import Progress
from ropewalk.datapipe.passes.worker import Task, Worker
from tests.benchmarks.bench_preprocess import corpus
from tests.benchmarks.bench_rules import peak_kib
from tests.fakes.documents import configure
from tests.fakes.driver import Driver

STAGES: dict[str, Any] = {
    "language": {"keep": [], "min_confidence": 0, "code": False},
    "filters": ["gopher_quality", "gopher_repetition", "fineweb"],
    "near_duplicates": {},
    "paragraphs": {},
    "pii": {},
}
SHORT_STAGES: dict[str, Any] = {"near_duplicates": {}, "paragraphs": {}, "balance": {"temperature": 0.9}}


def grown(megabytes: float, folder: Path) -> Path:
    """The corpus, as often as that takes."""
    path = folder / "in.jsonl.zst"
    left, copy = megabytes * 1e6, 0
    source = corpus(None, folder)
    with path.open("wb") as out, zstandard.ZstdCompressor(level=1).stream_writer(out) as packed:
        while left > 0:
            with source.open("rb") as raw:
                for line in io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(raw)):
                    if left <= 0:
                        break
                    record = orjson.loads(line)
                    text = f"{record['text']}\ncopy {copy}"
                    packed.write(orjson.dumps({**record, "id": f"{copy}-{record.get('id')}", "text": text}) + b"\n")
                    left -= len(line)
            copy += 1
    return path


class Meter(threading.Thread):
    """The most memory of the driver and of any actor, and their CPU seconds and wall from the first actor on."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(daemon=True)
        self.driver, self.ended = driver, threading.Event()
        self.driver_mib = self.actor_mib = self.wall = 0.0
        self.seconds: dict[int, list[float]] = {}
        self.began: float | None = None

    def run(self) -> None:
        root = psutil.Process(self.driver.process.pid)
        while not self.ended.wait(0.1):
            try:
                self._look(root, self.driver.actors())
            except psutil.Error:
                continue

    def _look(self, root: psutil.Process, actors: list[psutil.Process]) -> None:
        if actors and self.began is None:
            self.began = time.monotonic()
        if self.began is None:
            return
        self.wall = time.monotonic() - self.began
        self.driver_mib = max(self.driver_mib, root.memory_info().rss / 2**20)
        for process in (root, *actors):
            times = process.cpu_times()
            self.seconds.setdefault(process.pid, [times.user + times.system, 0.0])[1] = times.user + times.system
        for actor in actors:
            self.actor_mib = max(self.actor_mib, actor.memory_info().rss / 2**20)

    def stop(self) -> dict[str, Any]:
        """Stop measuring and return the figures."""
        self.ended.set()
        self.join()
        cpu = sum(last - first for first, last in self.seconds.values())
        cores = min(len(self.seconds) - 1 or 1, os.cpu_count() or 1)
        return {
            "wall s": round(self.wall, 1),
            "CPU s": round(cpu, 1),
            "busy, of as many cores as actors": round(cpu / max(self.wall, 0.1) / cores, 3),
            "driver MiB": round(self.driver_mib),
            "an actor's MiB": round(self.actor_mib),
        }


def do(output: str, task: Task) -> Any:
    """Do a task, in a process of its own."""
    return Worker(output, f"{output}/.work").do(task)


def driver_of_short(documents: int, stages: dict[str, Any]) -> dict[str, int]:
    """The peak of the driver's memory in this process, over so many short documents."""
    draw = random.Random(0)
    with tempfile.TemporaryDirectory(prefix="bench-growth-") as name, ProcessPoolExecutor(1, get_context("spawn")) as pool:
        with (source := Path(name) / "in.jsonl").open("wb") as out:
            for number in range(documents):
                text = f"equal to {number % 1000}" if number % 9 == 0 else f"{draw.random()} rope {draw.random()}"
                out.write(orjson.dumps({"id": f"{number - (number % 50 == 1)}", "text": text}) + b"\n")
        config = configure(source, Path(name) / "out", unit_mib=2, shard_mib=4, validation_fraction=0.01, **stages)

        def run(tasks: Sequence[Task]) -> Iterator[tuple[Task, Any]]:
            for task in tasks:
                yield task, pool.submit(do, config.output, task).result()

        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
        manifest = make_data_set(config, config.seed, run, Progress(lambda _: None))
        return {"documents": documents, "kept": manifest.totals.documents, "renamed": manifest.renamed_ids, "KiB": peak_kib()}


def short(documents: Sequence[str], stages: str) -> dict[str, Any]:
    """The driver's peak over so many short documents each, and its slope."""
    results = []
    for number in documents:
        command = [sys.executable, "-m", __spec__.name, "--driver-of", number, "--stages", stages]
        results.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout))
    first, last = results[0], results[-1]
    slope = 1024 * (last["KiB"] - first["KiB"]) / max(last["documents"] - first["documents"], 1)
    return {"short documents": results, "the driver's bytes a document": round(slope, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--megabytes", default="50,500")
    parser.add_argument("--actors", default="2")
    parser.add_argument("--stages", choices=["all", "none"], default="all")
    parser.add_argument("--backend", choices=["tokenizers", "fastokens"], default="tokenizers")
    parser.add_argument("--short", default="", help="numbers of short documents, instead of megabytes")
    parser.add_argument("--driver-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.driver_of is not None:
        print(json.dumps(driver_of_short(options.driver_of, SHORT_STAGES if options.stages == "all" else {})))
        return
    if options.short:
        print(json.dumps(short(options.short.split(","), options.stages)))
        return
    with tempfile.TemporaryDirectory(prefix="bench-growth-") as name:
        folder = Path(name)
        for megabytes in map(float, options.megabytes.split(",")):
            source = grown(megabytes, folder)
            for actors in map(int, options.actors.split(",")):
                output = folder / f"out-{megabytes:.0f}-{actors}"
                tokenizer = {"train": 8192, "sample_mib": 8, "backend": options.backend}
                stages = STAGES if options.stages == "all" else {}
                config = configure(source, output, actors=actors, tokenizer=tokenizer, **stages)
                record = {"config": config.model_dump(mode="json"), "resources": {"cpus": max(actors, os.cpu_count() or 1)}}
                driver = Driver(RunDir.create("bench", record, root=folder / "runs").path)
                meter = Meter(driver)
                meter.start()
                driver.finish(timeout_seconds=24 * 3600)
                result = meter.stop()
                manifest = read_manifest(StoragePath(output))
                about = {"MB": round(megabytes), "actors": actors, "documents": manifest.totals.documents}
                print(json.dumps({**about, "MB/CPU-s": round(megabytes / result["CPU s"], 2), **result}), flush=True)


if __name__ == "__main__":
    main()

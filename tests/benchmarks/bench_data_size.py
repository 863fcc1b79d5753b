"""A data set at any size: bytes before the first batch, opening a million shards, and the loader on S3 against a local disk.

    python -m tests.benchmarks.bench_data_size [--gb 200] [--ranks 64] [--shards 1_000_000] [--s3-gb 40]
        [--cache-gb 4] [--windows 5]

The data sets are sparse files with the right checksums. Each simulated rank opens the data set and reads its 8 sequences of 2,049
tokens of the first global batch, and again of a later one, as after a recovery. Bytes are those of the manifest, the table of
shards, the checksums of blocks, and all blocks that were read. `--s3-gb` needs the S3 test server of the tests, whose answers
take 20 ms; both sides then read so many windows of 64 runs of 16 MiB (`loader.block_samples`) that nobody has read before, after
a first one. CPU seconds are those of all threads of the reading process. botocore and s3fs read the same ranges alone too, which
bounds what a loader above them can reach. Prints one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.loader.blocks import block_count
from ropewalk.datapipe.loader.config import LoaderConfig
from ropewalk.datapipe.loader.loader import Source, TokenLoader
from ropewalk.datapipe.loader.order import WINDOW_RUNS
from ropewalk.datapipe.loader.prefetch import tell_ahead
from ropewalk.datapipe.loader.remote import THREADS
from ropewalk.datapipe.manifest import Manifest, TokenizerRecord, checksum_of
from ropewalk.datapipe.shard_table import BLOCK_BYTES, BLOCKS_NAME, SCHEMA, SUM, TABLE_NAME, write_table
from ropewalk.jobs.training.loop.update.garbage import collected_by_step
from tests.conftest import S3Server, lab_script

SEQ_LEN, BATCH = 2048, 8
SHARD_BYTES, TOKENS_AT = 240_000_000, 1 << 20
RUN = (16 << 20) // (2 * SEQ_LEN)


def write_sparse(root: Path, shards: int, *, files: bool = True) -> Path:
    """A data set whose files are holes, that is zeros, with the right table and checksums."""
    tokens = (SHARD_BYTES - TOKENS_AT) // 2
    blocks = block_count(SHARD_BYTES)
    whole, rest = (xxhash.xxh3_64_intdigest(bytes(size)) for size in (BLOCK_BYTES, SHARD_BYTES % BLOCK_BYTES))
    sums = np.array([*[whole] * (blocks - 1), rest], SUM).tobytes()
    columns: dict[str, Any] = {
        "path": [f"shards/part-{number:05d}.arrow" for number in range(shards)],
        "split": pa.DictionaryArray.from_arrays(pa.array(np.zeros(shards, np.int8)), pa.array(["train"])),
        "first_block": np.arange(shards) * blocks,
        "checksum": [number.to_bytes(16, "big") for number in range(shards)],  # nobody reads it
        "blocks": [bytes.fromhex(checksum_of(sums)[5:])] * shards,
    }
    numbers = {"documents": 1, "tokens": tokens, "bytes": 4 * tokens, "size": SHARD_BYTES, "tokens_at": TOKENS_AT}
    columns |= {name: np.full(shards, value) for name, value in numbers.items()}
    arrays = [c if isinstance(c := columns[f.name], pa.Array) else pa.array(c, f.type) for f in SCHEMA]
    (root / "shards").mkdir(parents=True)
    if files:
        (root / BLOCKS_NAME).write_bytes(sums * shards)
        for path in columns["path"]:
            with (root / path).open("wb") as stream:
                stream.truncate(SHARD_BYTES)
    record = TokenizerRecord(name="made", hash="xxh3:0", vocabulary=65536, end_of_document=0, version="0")
    write_table(StoragePath(root), Manifest(tokenizer=record, token_type="uint16", totals={}), pa.record_batch(arrays, SCHEMA))
    return root


def bytes_of_rank(root: Path, rank: int, ranks: int, step: int, options: LoaderConfig) -> int:
    """Bytes that a rank has read when it has its part of the batch of a step."""
    loader = TokenLoader([Source(str(root))], seq_len=SEQ_LEN, seed=1, options=options)
    first = (step * ranks + rank) * BATCH
    loader.read(range(first, first + BATCH))
    return loader.bytes_read + sum((root / name).stat().st_size for name in ("manifest.json", TABLE_NAME))


def first_batches(root: Path, ranks: int) -> dict[str, Any]:
    """The most MB that any rank has read before its first batch, at the start and after a recovery, in both orders."""
    orders = {"all sequences shuffled": LoaderConfig(), "runs of 16 MiB": LoaderConfig(block_samples=RUN)}
    return {
        f"{name}, {when}": round(max(bytes_of_rank(root, rank, ranks, step, options) for rank in range(ranks)) / 1e6, 1)
        for name, options in orders.items()
        for when, step in (("start", 0), ("recovery at step 1000", 1000))
    }


def opened(root: str) -> dict[str, float]:
    """Seconds and memory for opening a data set, in this process."""
    before, wall, cpu = _anonymous_mib(), time.perf_counter(), time.process_time()
    loader = TokenLoader([Source(root)], seq_len=SEQ_LEN, seed=1)
    times = {"wall s": round(time.perf_counter() - wall, 3), "CPU s": round(time.process_time() - cpu, 3)}
    return {"shards": len(loader.datasets[0].shards), **times, "MiB of a rank": round(_anonymous_mib() - before, 1)}


def _anonymous_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def rate(url: str, windows: int, cache_gib: float, cache: str) -> dict[str, float]:
    """Tokens a CPU-second and a second of whole windows after the first, in this process, read ahead as training does."""
    loader = TokenLoader(
        [Source(url)], seq_len=SEQ_LEN, seed=1, options=LoaderConfig(block_samples=RUN, cache_gib=cache_gib, cache=cache)
    )
    window = RUN * WINDOW_RUNS
    marks = []
    plan = (range(first, first + BATCH) for first in range(0, (windows + 1) * window, BATCH))
    with collected_by_step():
        for positions in tell_ahead(plan, loader.expect):
            if positions.start in (window, (windows + 1) * window - BATCH):
                marks.append((time.perf_counter(), time.process_time(), loader.bytes_read))
            loader.read(positions)
    (wall, cpu, size), tokens = (last - first for first, last in zip(*marks, strict=True)), windows * window * SEQ_LEN
    return {
        "tokens per CPU-second": round(tokens / cpu),
        "tokens per second": round(tokens / wall),
        "GB read": round(size / 1e9, 2),
    }


def alone(url: str, count: int, folder: str) -> dict[str, float]:
    """CPU milliseconds a MB that libraries take to read so many ranges of 16 MiB in the threads of the loader."""
    from ropewalk.datapipe.loader.s3_ranges import read_range

    root, size = StoragePath(url), 16 << 20
    pieces = [
        (f"shards/part-{number:05d}.arrow", start) for number in range(count) for start in range(0, SHARD_BYTES - size, size)
    ]

    def by_botocore(piece: tuple[str, int]) -> int:
        return len(read_range(root.fs, root.path(piece[0]), piece[1], piece[1] + size))

    def to_file(piece: tuple[str, int]) -> int:
        with tempfile.TemporaryFile(dir=folder) as stream:
            return stream.write(read_range(root.fs, root.path(piece[0]), piece[1], piece[1] + size))

    def by_s3fs(piece: tuple[str, int]) -> int:
        return len(root.read(piece[0], piece[1], piece[1] + size))

    def cpu_ms(read: Callable[[tuple[str, int]], int]) -> float:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(read, pieces[:THREADS]))  # connects
            before = time.process_time()
            num_bytes = sum(pool.map(read, pieces[THREADS : THREADS + count]))
        return round((time.process_time() - before) * 1e9 / num_bytes, 3)

    return {"botocore": cpu_ms(by_botocore), "botocore, to files": cpu_ms(to_file), "s3fs": cpu_ms(by_s3fs)}


def in_process(function: str, *arguments: Any, env: dict[str, str] | None = None) -> Any:
    """The result of a function of this module in a fresh process."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_data_size", "--call", function, json.dumps(arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **(env or {})})
    return json.loads(done.stdout)


def against_s3(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Rates of a local data set and of the same on S3, each read for the first time."""
    script, shards = lab_script(), max(2, round(options.s3_gb * 1e9 / SHARD_BYTES))
    if script is None:
        return {"s3": "no test server"}
    lab = folder / "s3"
    subprocess.run([script, "up", lab], check=True, stdout=subprocess.DEVNULL)
    try:
        env = dict(word.split("=", 1) for word in (lab / "env.sh").read_text().removeprefix("export ").split())
        server = S3Server(env)
        server._post("/proxies/s3/toxics", {"type": "latency", "attributes": {"latency": 20}})
        (lab / "data/bucket").mkdir()
        write_sparse(lab / "data/bucket/set", shards)
        local = write_sparse(folder / "local", shards)
        cache = options.cache_gb * 1e9 / 2**30
        report: dict[str, Any] = {}
        for name, url in (("local", str(local)), ("S3", "s3://bucket/set")):
            report[name] = in_process("rate", url, options.windows, cache, str(folder / "cache"), env=env)
        libraries = in_process("alone", "s3://bucket/set", 32 * options.windows, str(folder), env=env)
        sizes = [entry.stat().st_blocks * 512 for entry in os.scandir(folder / "cache")]
    finally:
        subprocess.run([script, "down", lab], check=True, stdout=subprocess.DEVNULL)
    ratio = report["S3"]["tokens per CPU-second"] / report["local"]["tokens per CPU-second"]
    local_ms = 5e8 / report["local"]["tokens per CPU-second"]  # a token has two bytes
    report["CPU ms a MB"] = {"local": round(local_ms, 3), **libraries}
    report["S3 / local if this were all"] = {name: round(local_ms / (local_ms + ms), 2) for name, ms in libraries.items()}
    return {**report, "S3 / local": round(ratio, 2), "GB in the cache": round(sum(sizes) / 1e9, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=200)
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--shards", type=int, default=1_000_000)
    parser.add_argument("--s3-gb", type=float, default=40)
    parser.add_argument("--cache-gb", type=float, default=4)
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--call", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.call:
        function, arguments = options.call
        print(json.dumps({"opened": opened, "rate": rate, "alone": alone}[function](*json.loads(arguments))))
        return
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-data-size-") as name:
        folder = Path(name)
        if options.gb:
            start = time.perf_counter()
            root = write_sparse(folder / "sparse", max(2, round(options.gb * 1e9 / SHARD_BYTES)))
            report["sparse files written, s"] = round(time.perf_counter() - start, 2)
            report["most MB of a rank before its first batch"] = first_batches(root, options.ranks)
            loader = TokenLoader([Source(str(root))], seq_len=SEQ_LEN, seed=1)
            start = time.perf_counter()
            loader.check_sizes()
            report["sizes checked by one rank, s"] = round(time.perf_counter() - start, 3)
        if options.shards:
            report["opened"] = in_process("opened", str(write_sparse(folder / "many", options.shards, files=False)))
        if options.s3_gb:
            report |= against_s3(folder, options)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

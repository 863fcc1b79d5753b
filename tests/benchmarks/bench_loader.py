"""Tokens a CPU-second of the loader and of litdata over the same tokens, and the time to the first batch after a resume.

    python -m tests.benchmarks.bench_loader [--tokens 50_000_000] [--rounds 3]

Both read one shuffled epoch, sequence 2048, batch 8, in this process, with no workers. litdata: TokensLoader,
StreamingDataset(shuffle=True), StreamingDataLoader(num_workers=0), its batches as they come; ours are widened to
int64, which is what an embedding takes. Prints one JSON object.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import litdata
import numpy as np
import torch

from ropewalk.datapipe.loader.loader import Source, TokenLoader
from tests.fakes.token_files import write_dataset

SEQ_LEN, BATCH, SHARD_TOKENS = 2048, 8, 4_000_000


def tokens_of(index: int) -> torch.Tensor:
    """One shard's worth of tokens for litdata's optimizer."""
    start = index * SHARD_TOKENS
    return torch.from_numpy((np.arange(start, start + SHARD_TOKENS) % 65536).astype(np.uint16))


def write_litdata(folder: Path, shards: int) -> None:
    """Write the tokens in litdata's format, in chunks of 64 MB, its documented setting for tokens."""
    litdata.optimize(
        fn=tokens_of,
        inputs=list(range(shards)),
        output_dir=str(folder),
        chunk_size=(SEQ_LEN + 1) * 16_384,
        item_loader=litdata.TokensLoader(),
        num_workers=1,
        verbose=False,
    )


def litdata_epoch(folder: Path) -> int:
    """Tokens of one shuffled epoch."""
    dataset = litdata.StreamingDataset(
        str(folder), item_loader=litdata.TokensLoader(block_size=SEQ_LEN + 1), shuffle=True, drop_last=False, seed=1
    )
    loader = litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=0)
    return sum(batch.numel() for batch in loader)


def our_batches(folder: Path) -> Iterator[np.ndarray]:
    """One shuffled epoch."""
    loader = TokenLoader([Source(str(folder))], seq_len=SEQ_LEN, seed=1)
    for first in range(0, loader.sequences, BATCH):
        yield loader.read(range(first, min(first + BATCH, loader.sequences)))


def our_epoch(folder: Path) -> int:
    """Tokens of one shuffled epoch, and the checks of the data set."""
    return sum(batch.size for batch in our_batches(folder))


def rate(epoch: Callable[[Path], int], folder: Path) -> float:
    """Tokens a CPU-second of all threads of this process."""
    start = time.process_time()
    return epoch(folder) / (time.process_time() - start)


def resume_milliseconds(folder: Path, position: int) -> float:
    """A fresh object, every check of what it reads, the first batch."""
    start = time.perf_counter()
    TokenLoader([Source(str(folder))], seq_len=SEQ_LEN, seed=1).read(range(position, position + BATCH))
    return (time.perf_counter() - start) * 1000


def main() -> None:
    """Run both in turn, so that a busy machine slows both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=50_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    shards = max(1, round(options.tokens / SHARD_TOKENS))
    with tempfile.TemporaryDirectory() as name:
        ours, theirs = Path(name) / "ropewalk", Path(name) / "litdata"
        write_dataset(ours, [SHARD_TOKENS] * shards)
        write_litdata(theirs, shards)
        our_epoch(ours), litdata_epoch(theirs)  # imports and page cache are not what is compared
        rates = [(rate(our_epoch, ours), rate(litdata_epoch, theirs)) for _ in range(options.rounds)]
        steps = [0, 1, 777, 10**4, 10**6, 10**9]
        resumes = {step: round(resume_milliseconds(ours, step * BATCH), 2) for step in steps}
    ours_best, theirs_best = (max(column) for column in zip(*rates, strict=True))
    report = {
        "tokens": shards * SHARD_TOKENS,
        "ropewalk tokens per CPU-second": round(ours_best),
        "litdata tokens per CPU-second": round(theirs_best),
        "ratio": round(ours_best / theirs_best, 2),
        "first batch after a resume at step, ms": resumes,
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

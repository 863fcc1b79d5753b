"""Growth with the number of ranks of what a data set and a checkpoint need: rows of bench_growth."""

import gc
import math
import tempfile
from pathlib import Path

from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.loader.loader import Source, TokenLoader
from ropewalk.datapipe.shard_table import TABLE_NAME
from ropewalk.sharding.checkpoints.layout import MANIFEST_NAME
from ropewalk.sharding.checkpoints.read_plan import ReadPlan
from ropewalk.sharding.placement import pieces
from tests.benchmarks.bench_checkpoint import LLAMA, write_manifest
from tests.benchmarks.bench_data_size import BATCH, SEQ_LEN, write_sparse

LEAST_SHARDS = 64  # the data set has one more for each rank
LAYERS = 4  # of a model as wide as Llama 3's 70B


def data(size: int) -> dict[str, float]:
    """Read the first batch on the first and on the last rank."""
    with tempfile.TemporaryDirectory() as home:
        root = write_sparse(Path(home) / "set", LEAST_SHARDS + size)
        read, files = zip(*(_first_batch(root, rank) for rank in (0, size - 1)), strict=True)
    return {"read before the first batch, MiB": max(read), "files open before the first batch": max(files)}


def _first_batch(root: Path, rank: int) -> tuple[float, int]:
    gc.collect()  # closes the files of the rank before
    loader = TokenLoader([Source(str(root))], seq_len=SEQ_LEN, seed=1)
    loader.read(range(rank * BATCH, (rank + 1) * BATCH))
    tables = sum((root / name).stat().st_size for name in ("manifest.json", TABLE_NAME))
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    return (loader.bytes_read + tables) / 2**20, sum(name.startswith(str(root)) for name in mapped)


def checkpoint(size: int) -> dict[str, float]:
    """Describe a checkpoint of a Llama, and find what a rank of half as many ranks reads of it."""
    LLAMA[str(size)] = (LAYERS, *LLAMA["70B"][1:-1], size)
    with tempfile.TemporaryDirectory() as home:
        layout = write_manifest(str(size), StoragePath(home))
        manifest = (Path(home) / MANIFEST_NAME).stat().st_size
    file, plan, ranks = layout.file(size // 2), ReadPlan(layout), size // 2
    read = whole = 0
    for name, tensor in layout.tensors.items():
        wanted = pieces(tensor.shape, (ranks,), tensor.placement, ranks // 2)
        read += sum(part.end - part.start for part in plan.parts(name, wanted))
        whole += math.prod(tensor.shape) * tensor.torch_dtype.itemsize
    return {
        "manifest of a checkpoint, KiB": manifest / 1024,
        "header and table of a rank's file, KiB": (len(file.header) + 8 * file.num_blocks) / 1024,
        "bytes that a resuming rank reads, over its share": read * ranks / whole,
    }

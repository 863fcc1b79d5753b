"""Growth with the number of ranks of what a checkpoint needs: rows of bench_growth."""

import math
import tempfile
from pathlib import Path

from ropewalk.cluster.storage import StoragePath
from ropewalk.sharding.layout import MANIFEST_NAME
from ropewalk.sharding.placement import pieces
from ropewalk.sharding.read_plan import ReadPlan
from tests.benchmarks.bench_checkpoint import LLAMA, write_manifest

LAYERS = 4  # of a model as wide as Llama 3's 70B


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

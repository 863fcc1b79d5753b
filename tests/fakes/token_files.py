"""Small data sets of known tokens, written straight by the contract."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.manifest import Manifest, Shard, TokenizerRecord, Totals, write_manifest

END = 0


def write_shard(path: Path, documents: Sequence[np.ndarray], batches: int = 1) -> None:
    """One Arrow file of documents; `batches` record batches."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = pa.from_numpy_dtype(documents[0].dtype)
    schema = pa.schema([("id", pa.string()), ("source", pa.string()), ("tokens", pa.list_(kind))])
    with pa.ipc.new_file(str(path), schema) as writer:
        for part in np.array_split(np.arange(len(documents)), batches):
            offsets = np.cumsum([0, *(len(documents[i]) for i in part)], dtype=np.int32)
            flat = np.concatenate([documents[i] for i in part])
            tokens = pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))
            ids = pa.array([f"d{i}" for i in part])
            writer.write_batch(pa.record_batch([ids, pa.array(["s"] * len(part)), tokens], schema=schema))


def describe(root: Path, name: str, split: str, documents: Sequence[np.ndarray]) -> Shard:
    """The manifest's entry of a shard."""
    raw = (root / name).read_bytes()
    return Shard(
        path=name,
        split=split,
        documents=len(documents),
        tokens=sum(len(d) for d in documents),
        bytes=4 * sum(len(d) for d in documents),
        size=len(raw),
        checksum=f"xxh3:{xxhash.xxh3_128_hexdigest(raw)}",
    )


def write_dataset(
    root: Path, train: Sequence[int], validation: Sequence[int] = (), *, dtype: type = np.uint16, batches: int = 1, first: int = 0
) -> Path:
    """A data set whose shards have these many tokens. Tokens count up over the whole set, from `first`, modulo the type."""
    shards, position = [], first
    for split, folder, sizes in (("train", "shards", train), ("validation", "validation", validation)):
        for number, size in enumerate(sizes):
            flat = (np.arange(position, position + size) % (np.iinfo(dtype).max + 1)).astype(dtype)
            position += size
            documents = np.array_split(flat, max(batches, min(7, size)))
            name = f"{folder}/part-{number:05d}.arrow"
            write_shard(root / name, documents, batches)
            shards.append(describe(root, name, split, documents))
    tokenizer = TokenizerRecord(
        name="made", hash="xxh3:0", vocabulary=int(np.iinfo(dtype).max) + 1, end_of_document=END, version="0"
    )
    manifest = Manifest(
        tokenizer=tokenizer, token_type=np.dtype(dtype).name, shards=tuple(shards), totals=Totals.of_shards(shards)
    )
    write_manifest(StoragePath(root), manifest)
    return root

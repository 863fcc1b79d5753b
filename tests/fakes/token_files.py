"""Small data sets of known tokens, written straight by the contract."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.manifest import Manifest, Split, TokenizerRecord, TokenType, Totals
from ropewalk.datapipe.shard_table import WrittenShard, describe_shard, write_data_set

END = 0


def write_shard(
    root: Path,
    name: str,
    split: Split,
    documents: Sequence[np.ndarray],
    *,
    ids: Sequence[str] = (),
    text_bytes: int | None = None,
) -> WrittenShard:
    """One Arrow file of documents; `text_bytes`: by default four a token."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    flat = np.concatenate(documents)
    offsets = np.cumsum([0, *map(len, documents)], dtype=np.int32)
    tokens = pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))
    names = pa.array(ids or [f"d{i}" for i in range(len(documents))])
    table = pa.table({"id": names, "source": pa.array(["s"] * len(documents)), "tokens": tokens})
    with (root / name).open("w+b") as stream:
        with pa.ipc.new_file(stream, table.schema) as writer:
            writer.write_table(table)
        size = 4 * len(flat) if text_bytes is None else text_bytes
        return describe_shard(stream, path=name, split=split, documents=len(documents), text_bytes=size)


def write_manifest_of(
    root: Path, shards: Sequence[WrittenShard], tokenizer: TokenizerRecord, token_type: TokenType = "uint16"
) -> None:
    """Complete a data set of these shards."""
    manifest = Manifest(tokenizer=tokenizer, token_type=token_type, totals=Totals.of_shards(shards))
    write_data_set(StoragePath(root), manifest, shards)


def write_dataset(
    root: Path,
    train: Sequence[int],
    validation: Sequence[int] = (),
    *,
    dtype: type = np.uint16,
    documents: int = 7,
    first: int = 0,
    bytes_a_token: int = 4,
) -> Path:
    """A data set whose shards have these many tokens. Tokens count up over the whole set, from `first`, modulo the type."""
    shards, position = [], first
    splits: tuple[tuple[Split, str, Sequence[int]], ...] = (("train", "shards", train), ("validation", "validation", validation))
    for split, folder, sizes in splits:
        for number, size in enumerate(sizes):
            flat = (np.arange(position, position + size) % (np.iinfo(dtype).max + 1)).astype(dtype)
            position += size
            parts = np.array_split(flat, min(documents, size))
            name = f"{folder}/part-{number:05d}.arrow"
            shards.append(write_shard(root, name, split, parts, text_bytes=bytes_a_token * size))
    tokenizer = TokenizerRecord(
        name="made", hash="xxh3:0", vocabulary=int(np.iinfo(dtype).max) + 1, end_of_document=END, version="0"
    )
    write_manifest_of(root, shards, tokenizer, np.dtype(dtype).name)  # type: ignore[arg-type]
    return root

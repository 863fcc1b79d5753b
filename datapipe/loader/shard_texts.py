"""Read the documents of a shard back as text. A shard that does not match the manifest is an error, so none is read in part."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
from tokenizers import Tokenizer

from ropewalk.cluster.errors import CorruptShardError, DataError
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.loader.shard_cache import read_shards
from ropewalk.datapipe.manifest import Manifest, Shard, checksum_of, read_manifest

ROWS_A_BATCH = 512


@dataclass(frozen=True, kw_only=True)
class TrainingShard:
    """A shard of a data set."""

    data: str  # path or URL of the data set
    manifest: Manifest
    shard: Shard

    @property
    def name(self) -> str:
        return f"{self.data.rstrip('/').rpartition('/')[2]}/{self.shard.path}"


@dataclass(frozen=True, kw_only=True)
class TextDocument:
    """Document of a shard as text; `row` is its index in the shard."""

    id: str
    source: str
    text: str
    row: int


def list_shards(paths: list[str], split: str | None = None) -> list[TrainingShard]:
    """List the shards of data sets, of one split or all. Raises DataError if a data set does not exist."""
    manifests = [(path, read_manifest(StoragePath(path))) for path in paths]
    return [
        TrainingShard(data=path, manifest=manifest, shard=shard)
        for path, manifest in manifests
        for shard in read_shards(StoragePath(path), manifest)
        if split in (None, shard.split)
    ]


def open_shard(shard: TrainingShard) -> Any:
    """Verify the checksum of a shard and return an Arrow reader of it. Raises CorruptShardError."""
    root, path, url = StoragePath(shard.data), shard.shard.path, f"{shard.data}/{shard.shard.path}"
    try:
        raw = pa.memory_map(str(root.local / path)).read_buffer() if root.local else root.read(path)
    except FileNotFoundError:
        raise CorruptShardError(f"{url}: no such file; copy it again from its source") from None
    if (checksum := checksum_of(raw)) != shard.shard.checksum:
        problem = f"expected checksum {shard.shard.checksum}, found {checksum}"
        raise CorruptShardError(f"{url}: {problem}; copy it again from its source")
    return pa.ipc.open_file(raw)


def text_batches(shard: TrainingShard) -> Iterator[list[TextDocument]]:
    """Yield the documents of a shard as text, several hundred at a time."""
    tokenizer, row = data_tokenizer(shard.data, shard.manifest.tokenizer.path), 0
    reader = open_shard(shard)
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        for start in range(0, batch.num_rows, ROWS_A_BATCH):
            part = batch.slice(start, ROWS_A_BATCH)
            ids, sources = part.column("id").to_pylist(), part.column("source").to_pylist()
            texts = tokenizer.decode_batch(tokens_of(part), skip_special_tokens=True)
            columns = zip(ids, sources, texts, strict=True)
            yield [TextDocument(id=i, source=s, text=t, row=row + k) for k, (i, s, t) in enumerate(columns)]
            row += part.num_rows


def texts_at(shard: TrainingShard, rows: Sequence[int]) -> list[str]:
    """Return the texts of the documents in these ascending rows of a shard."""
    tokenizer, texts, first = data_tokenizer(shard.data, shard.manifest.tokenizer.path), [], 0
    reader = open_shard(shard)
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        here = [row - first for row in rows if first <= row < first + batch.num_rows]
        if here:
            texts += tokenizer.decode_batch(tokens_of(batch.take(here)), skip_special_tokens=True)
        first += batch.num_rows
    return [str(text) for text in texts]


def tokens_of(batch: Any) -> list[list[int]]:
    """Return the tokens of each document of a record batch."""
    tokens: list[list[int]] = batch.column("tokens").to_pylist()
    return tokens


@lru_cache(maxsize=8)
def data_tokenizer(data: str, folder: str) -> Any:
    """Open the tokenizer of a data set. Raises DataError if it is gone."""
    try:
        return Tokenizer.from_str(StoragePath(data).child(folder).read("tokenizer.json").decode())
    except FileNotFoundError:
        raise DataError(
            f"{data}/{folder}/tokenizer.json: no such file, and documents cannot be read without it; copy it again"
        ) from None

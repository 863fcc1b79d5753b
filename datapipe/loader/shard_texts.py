"""Read a shard's documents back as text. A shard that does not match the manifest is an error: nothing is searched in part."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import xxhash
from tokenizers import Tokenizer

from ropewalk.cluster.errors import CorruptShardError, DataError
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.manifest import Manifest, Shard, read_manifest

ROWS_A_BATCH = 512


@dataclass(frozen=True, kw_only=True)
class TrainingShard:
    """A shard of a data set."""

    data: str  # path or URL of the data set
    manifest: Manifest
    shard: Shard

    @property
    def name(self) -> str:
        """How the shard is called in a report."""
        return f"{self.data.rstrip('/').rpartition('/')[2]}/{self.shard.path}"


@dataclass(frozen=True, kw_only=True)
class TextDocument:
    """A document of a shard as text."""

    id: str
    source: str
    text: str
    row: int


def list_shards(paths: list[str], split: str | None = None) -> list[TrainingShard]:
    """The shards of data sets, of one split or all. Raises DataError where there is no such data set."""
    manifests = [(path, read_manifest(StoragePath(path))) for path in paths]
    return [
        TrainingShard(data=path, manifest=manifest, shard=shard)
        for path, manifest in manifests
        for shard in manifest.shards
        if split in (None, shard.split)
    ]


def open_shard(one: TrainingShard) -> Any:
    """An Arrow reader of a shard whose checksum was verified. Raises CorruptShardError."""
    place = StoragePath(one.data)
    try:
        raw = pa.memory_map(str(place.local / one.shard.path)).read_buffer() if place.local else place.read(one.shard.path)
    except FileNotFoundError:
        raise CorruptShardError(f"{one.data}/{one.shard.path}: is gone; copy it again from where it was made") from None
    found = f"xxh3:{xxhash.xxh3_128_hexdigest(raw)}"
    if found != one.shard.checksum:
        what = f"expected checksum {one.shard.checksum}, found {found}"
        raise CorruptShardError(f"{one.data}/{one.shard.path}: {what}; copy it again from where it was made")
    return pa.ipc.open_file(raw)


def text_batches(one: TrainingShard) -> Iterator[list[TextDocument]]:
    """The documents of a shard as text, some hundred at a time."""
    tokenizer, row = data_tokenizer(one.data, one.manifest.tokenizer.path), 0
    reader = open_shard(one)
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        for start in range(0, batch.num_rows, ROWS_A_BATCH):
            part = batch.slice(start, ROWS_A_BATCH)
            ids, sources = part.column("id").to_pylist(), part.column("source").to_pylist()
            texts = tokenizer.decode_batch(tokens_of(part), skip_special_tokens=True)
            found = zip(ids, sources, texts, strict=True)
            yield [TextDocument(id=i, source=s, text=t, row=row + k) for k, (i, s, t) in enumerate(found)]
            row += part.num_rows


def texts_at(one: TrainingShard, rows: Sequence[int]) -> list[str]:
    """The texts of some documents of a shard, by their ascending numbers in it."""
    tokenizer, found, first = data_tokenizer(one.data, one.manifest.tokenizer.path), [], 0
    reader = open_shard(one)
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        here = [row - first for row in rows if first <= row < first + batch.num_rows]
        if here:
            found += tokenizer.decode_batch(tokens_of(batch.take(here)), skip_special_tokens=True)
        first += batch.num_rows
    return [str(text) for text in found]


def tokens_of(batch: Any) -> list[list[int]]:
    """The tokens of each document of a record batch."""
    found: list[list[int]] = batch.column("tokens").to_pylist()
    return found


@lru_cache(maxsize=8)
def data_tokenizer(data: str, folder: str) -> Any:
    """The tokenizer that made a data set. Raises DataError."""
    try:
        return Tokenizer.from_str(StoragePath(data).child(folder).read("tokenizer.json").decode())
    except FileNotFoundError:
        raise DataError(
            f"{data}/{folder}/tokenizer.json: is gone, and documents cannot be read without it; copy it again"
        ) from None

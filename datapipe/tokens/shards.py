"""Pass 2 for one shard: read the kept documents, tokenize them, write one Arrow file. Independent of Ray."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.dedup.equal import Renamed
from ropewalk.datapipe.dedup.exact import TRAIN, VALIDATION, Corpus, unnamed_id
from ropewalk.datapipe.dedup.paragraphs.cutting import CUT, cut_text, read_cuts
from ropewalk.datapipe.inputs.files import Unit
from ropewalk.datapipe.inputs.streams import MIB, naming_full_disk, open_file
from ropewalk.datapipe.inputs.unit_files import texts_name
from ropewalk.datapipe.manifest import Split
from ropewalk.datapipe.report.samples import HEAD_CHARS, shard_facts
from ropewalk.datapipe.shard_table import WrittenShard, describe_shard
from ropewalk.datapipe.text.document import NamedDocument
from ropewalk.datapipe.tokens.augment import encode_augmented
from ropewalk.datapipe.tokens.config import Augment
from ropewalk.datapipe.tokens.tokenizer import Encoder

ENCODE_BYTES = 1 << 20  # text per call of the tokenizer
SMALLEST, LARGEST = 4 * MIB, 256 * MIB
FOLDERS: dict[Split, str] = {"train": "shards", "validation": "validation"}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """All documents: units, record batches, fates, new ids and cuts."""

    units: Sequence[Unit]
    blocks: Sequence[Sequence[int]]  # documents in each record batch of each unit
    corpus: Corpus
    renamed: Renamed
    cut: bool = False  # cut repeated paragraphs from texts


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Ascending rows of a unit, stored compactly: bits from the first row on, or numbers if rows are sparse."""

    first: int
    bits: NDArray[np.uint8] | None
    numbers: NDArray[np.uint32] | None

    @classmethod
    def of(cls, rows: NDArray[np.int64]) -> "Rows":
        """Pack rows; a row may occur several times."""
        first = int(rows[0]) if len(rows) else 0
        span = int(rows[-1]) - first + 1 if len(rows) else 0
        if span > 32 * len(rows) or (np.diff(rows) == 0).any():
            return cls(first=first, bits=None, numbers=rows.astype(np.uint32))
        mask = np.zeros(span, np.bool_)
        mask[rows - first] = True
        return cls(first=first, bits=np.packbits(mask), numbers=None)

    def all(self) -> NDArray[np.int64]:
        if self.bits is None:
            return np.asarray(self.numbers, np.int64)
        return np.flatnonzero(np.unpackbits(self.bits)) + self.first


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Some documents of one unit: their rows in the unit, the sizes of its record batches, the files with new ids."""

    unit: Unit
    blocks: Sequence[int]  # documents in each record batch
    packed: Rows
    line_base: int
    renamed: Renamed
    cut: bool = False  # cut repeated paragraphs from texts


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """Everything that determines a shard's bytes, apart from the texts and the tokenizer."""

    split: Split
    number: int
    slices: tuple[Slice, ...]
    documents: int

    @property
    def path(self) -> str:
        return f"{FOLDERS[self.split]}/part-{self.number:05d}.arrow"

    @property
    def sidecar(self) -> str:
        """Path of the file in the work area that marks the shard as done."""
        return f"encoded/{self.split}-{self.number:05d}.json"

    @property
    def facts(self) -> str:
        """Path of the shard's facts for the report, in the work area."""
        return f"encoded/{self.split}-{self.number:05d}.facts.json"


def shard_limit(total_bytes: int, shard_mib: float | None) -> int:
    """Return the bytes of text per shard: `shard_mib`, else a 64th of all text, between 4 and 256 MiB."""
    return int(shard_mib * MIB) if shard_mib else min(max(total_bytes // 64, SMALLEST), LARGEST)


def plan_shards(layout: Layout, limit: int) -> list[ShardPlan]:
    """Cut the kept documents of each split, in order, into shards of about `limit` bytes."""
    plans: list[ShardPlan] = []
    splits: tuple[tuple[Split, int], ...] = (("train", TRAIN), ("validation", VALIDATION))
    for split, fate in splits:
        slices: list[list[Slice]] = []
        counts: list[int] = []
        for unit, rows, numbers in _assign_shards(layout, fate, limit):
            for number in np.unique(numbers).tolist():
                if number == len(slices):
                    slices.append([])
                    counts.append(0)
                first, last = np.searchsorted(numbers, [number, number + 1])
                slices[number].append(slice_of(layout, unit, rows[first:last]))
                counts[number] += int(last - first)
        plans += [
            ShardPlan(split=split, number=number, slices=tuple(parts), documents=count)
            for number, (parts, count) in enumerate(zip(slices, counts, strict=True))
        ]
    return plans


def _assign_shards(layout: Layout, fate: int, limit: int) -> Iterator[tuple[Unit, NDArray[np.int64], NDArray[np.int64]]]:
    """Yield each unit with its rows of this fate, repeated by their copies, and the shard number of each row."""
    corpus, total, reached, number = layout.corpus, 0, -1, -1
    for unit in layout.units:
        part = corpus.rows_of(unit.index)
        rows = np.flatnonzero(corpus.fate[part] == fate)
        if corpus.copies is not None:
            rows = np.repeat(rows, corpus.copies[part][rows])
        if len(rows):
            ends = np.cumsum(corpus.size[part][rows].astype(np.int64)) + total
            limits = np.concatenate([[total], ends[:-1]]) // limit  # a large document may skip some
            numbers = np.cumsum(np.diff(np.concatenate([[reached], limits])) != 0) + number
            total, reached, number = int(ends[-1]), int(limits[-1]), int(numbers[-1])
            yield unit, rows, numbers


def cut_slices(layout: Layout, rows: NDArray[np.int64]) -> Iterator[Slice]:
    """Split ascending global rows into one slice for each unit that has any."""
    offsets = layout.corpus.offsets
    owners = np.searchsorted(offsets, rows, side="right") - 1
    for index in np.unique(owners).tolist():
        yield slice_of(layout, layout.units[index], rows[owners == index] - offsets[index])


def slice_of(layout: Layout, unit: Unit, rows: NDArray[np.int64]) -> Slice:
    """Build the slice of ascending rows of one unit; it may be empty."""
    return Slice(
        unit=unit,
        blocks=layout.blocks[unit.index],
        packed=Rows.of(rows),
        line_base=layout.corpus.line_base[unit.index],
        renamed=layout.renamed,
        cut=layout.cut,
    )


def read_slice(part: Slice, work: StoragePath, with_text: bool = True) -> Iterator[NamedDocument]:
    """Read the documents of a slice in order; record batches without any are skipped."""
    starts, chosen = np.concatenate([[0], np.cumsum(part.blocks)]), part.packed.all()
    suffixes = part.renamed.of(part.unit.index, work)
    cuts = read_cuts(work, part.unit.index) if part.cut and with_text else np.zeros(0, dtype=CUT)
    with open_file(work, texts_name(part.unit.index)) as stream:
        columns = [0, 1, 2, 3] if with_text else [0, 1, 2]
        reader = pa.ipc.open_file(stream, options=pa.ipc.IpcReadOptions(included_fields=columns, use_threads=False))
        owners = np.searchsorted(starts, chosen, side="right") - 1
        for index in np.unique(owners).tolist():
            rows = chosen[owners == index]
            batch = reader.get_batch(index)
            if not np.array_equal(rows, np.arange(starts[index], starts[index + 1])):
                batch = batch.take(pa.array(rows - starts[index]))
            texts = batch.column(3).to_pylist() if with_text else [""] * len(rows)
            ids, sources, lines = (batch.column(i).to_pylist() for i in range(3))
            for row, id_, source, line, text in zip(rows.tolist(), ids, sources, lines, texts, strict=True):
                name = id_ or unnamed_id(part.unit, part.line_base + line)
                if len(cuts):
                    low, high = np.searchsorted(cuts["row"], [row, row + 1])
                    text = cut_text(text, cuts[low:high])  # noqa: PLW2901
                yield NamedDocument(name + suffixes.get(row, ""), source, text, part.line_base + line)


def encode_shard(
    plan: ShardPlan, encoder: Encoder, work: StoragePath, output: StoragePath, augment: Augment | None = None
) -> WrittenShard:
    """Write one shard, then the sidecar that marks it as done; a pure function of the plan, the texts and the tokenizer."""
    ids: list[str] = []
    sources: list[str] = []
    tokens: list[NDArray[np.unsignedinteger]] = []
    lengths: list[NDArray[np.int64]] = []
    sizes: list[int] = []
    heads: list[str] = []
    for part in plan.slices:
        for group in _groups(read_slice(part, work)):
            texts = [document.text for document in group]
            ids.extend(document.id for document in group)
            sources.extend(document.source for document in group)
            flat, counts = encode_augmented(group, encoder, augment if plan.split == "train" else None)
            tokens.append(flat)
            lengths.append(counts)
            sizes += [len(text) if text.isascii() else len(text.encode()) for text in texts]
            heads += [text[:HEAD_CHARS] for text in texts]
    with naming_full_disk(output.url), output.create(plan.path) as stream:
        _write_arrow(stream, (ids, sources), np.concatenate(tokens), np.concatenate(lengths), encoder)
        shard = describe_shard(stream, path=plan.path, split=plan.split, documents=len(ids), text_bytes=sum(sizes))
    facts = shard_facts(ids, sources, heads, np.concatenate(lengths), np.array(sizes))
    with naming_full_disk(work.url):
        work.write(plan.facts, json.dumps(facts).encode())
        work.write(plan.sidecar, json.dumps(shard.model_dump()).encode())
    return shard


def _groups(documents: Iterator[NamedDocument]) -> Iterator[list[NamedDocument]]:
    group: list[NamedDocument] = []
    held = 0
    for document in documents:
        group.append(document)
        held += len(document.text)
        if held >= ENCODE_BYTES:
            yield group
            group, held = [], 0
    if group:
        yield group


def _write_arrow(
    stream: IO[bytes],
    names: tuple[list[str], list[str]],
    flat: NDArray[np.unsignedinteger],
    lengths: NDArray[np.int64],
    encoder: Encoder,
) -> None:
    """Write one record batch of ids, sources and tokens; the child values of `tokens` are the shard's tokens in one piece."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    kind = pa.from_numpy_dtype(encoder.dtype)
    schema = pa.schema([("id", pa.string()), ("source", pa.string()), ("tokens", pa.list_(kind))])
    lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, type=kind))
    with pa.ipc.new_file(stream, schema) as writer:
        writer.write_batch(pa.record_batch([*(pa.array(column, pa.string()) for column in names), lists], schema=schema))


def read_sidecar(plan: ShardPlan, work: StoragePath, output: StoragePath) -> WrittenShard | None:
    """Return the shard if it is done and its file is complete, else None."""
    try:
        shard = WrittenShard.model_validate_json(work.read(plan.sidecar))
        return shard if output.size(plan.path) == shard.size else None
    except FileNotFoundError:
        return None

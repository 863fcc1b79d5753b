"""A batch of documents as Arrow columns. Words and lines are computed once and shared by all filters and MinHash."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ropewalk.datapipe.text.characters import character_tables
from ropewalk.datapipe.text.compiled import kernels
from ropewalk.datapipe.text.document import Document, Rejection
from ropewalk.datapipe.text.token_marks import abbreviations, token_marks

SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # null where the record has none
        ("source", pa.string()),
        ("line", pa.int64()),
        ("file", pa.int32()),
        ("text", pa.large_string()),
    ]
)
KERNELS = "ropewalk.datapipe.text.kernels"
HEAD_BYTES = 400  # bytes of a dropped text that are stored for the report
TOKENS_KERNELS = "ropewalk.datapipe.text.tokens_kernels"


class Words(NamedTuple):
    """The words of all texts of a batch, as separated by white space. Those of text k are [first[k], first[k + 1])."""

    first: NDArray[np.int64]
    start: NDArray[np.int32]  # first byte
    chars: NDArray[np.int32]
    kind: NDArray[np.uint8]  # union of the flags of its characters, and NOT_SYMBOL
    exact: NDArray[np.uint64]  # hash of the word
    folded: NDArray[np.uint64]  # hash of its letters and digits in lower case; 0 if it has none


class Tokens(NamedTuple):
    """The English tokens of all texts: words with punctuation cut off. Those of text k are [first[k], first[k + 1])."""

    first: NDArray[np.int64]
    chars: NDArray[np.int32]
    kind: NDArray[np.uint8]  # union of the flags of its characters, and NOT_SYMBOL
    exact: NDArray[np.uint64]  # hash of the token


class Lines(NamedTuple):
    """The lines of all texts of a batch, as separated by newlines. Those of text k are [first[k], first[k + 1])."""

    first: NDArray[np.int64]
    start: NDArray[np.int32]  # first byte
    end: NDArray[np.int32]
    chars: NDArray[np.int32]


Spans = TypeVar("Spans", Words, Tokens, Lines)
SPANS = ("words", "tokens", "lines")  # cached properties of a batch


@dataclass(frozen=True)
class DocumentBatch:
    """Documents of one unit, in input order. Kernels work on the UTF-8 in `data`; `texts` are Python strings."""

    records: pa.RecordBatch

    @classmethod
    def of(cls, documents: Sequence[Document]) -> "DocumentBatch":
        columns: list[list[Any]] = [[getattr(d, name) for d in documents] for name in SCHEMA.names]
        return cls(pa.record_batch(columns, schema=SCHEMA))

    @classmethod
    def of_texts(cls, texts: Sequence[str]) -> "DocumentBatch":
        """Build a batch from texts alone; lines are numbered from 1."""
        count = len(texts)
        columns = [[None] * count, [""] * count, list(range(1, count + 1)), [0] * count, list(texts)]
        return cls(pa.record_batch(columns, schema=SCHEMA))

    @classmethod
    def of_column(cls, texts: pa.LargeStringArray) -> "DocumentBatch":
        """Wrap a column of texts; the batch has no other column."""
        return cls(pa.record_batch([texts], names=["text"]))

    def __len__(self) -> int:
        return int(self.records.num_rows)

    @property
    def texts(self) -> list[str]:
        texts: list[str] = self.records.column("text").to_pylist()
        return texts

    def column(self, name: str) -> list[Any]:
        values: list[Any] = self.records.column(name).to_pylist()
        return values

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Start of each text in `data`, and the end of the last one: [documents + 1]."""
        array = self.records.column("text")
        buffer = array.buffers()[1]
        return np.frombuffer(buffer, dtype=np.int64)[array.offset : array.offset + len(array) + 1]

    @cached_property
    def data(self) -> NDArray[np.uint8]:
        """The concatenated texts in UTF-8."""
        buffer = self.records.column("text").buffers()[2]
        return np.frombuffer(buffer, dtype=np.uint8) if buffer else np.zeros(0, dtype=np.uint8)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """UTF-8 bytes of each text."""
        return np.diff(self.offsets)

    @cached_property
    def words(self) -> Words:
        most = int(self.offsets[-1] - self.offsets[0] + len(self) + 1) // 2 + 1
        start, chars = np.empty(most, dtype=np.int32), np.empty(most, dtype=np.int32)
        kind = np.empty(most, dtype=np.uint8)
        exact, folded = np.empty(most, dtype=np.uint64), np.empty(most, dtype=np.uint64)
        first = np.empty(len(self) + 1, dtype=np.int64)
        tables = character_tables()
        split = kernels(KERNELS).split_words
        count = split(self.data, self.offsets, tables.flags, tables.lower, start, chars, kind, exact, folded, first)
        return Words(first, *(a[:count] for a in (start, chars, kind, exact, folded)))  # type: ignore[arg-type]

    @cached_property
    def tokens(self) -> Tokens:
        compiled = kernels(TOKENS_KERNELS)
        most = int(compiled.most_tokens(self.data, int(self.offsets[0]), int(self.offsets[-1]))) + len(self)
        chars, kind = np.empty(most, dtype=np.int32), np.empty(most, dtype=np.uint8)
        exact, first = np.empty(most, dtype=np.uint64), np.empty(len(self) + 1, dtype=np.int64)
        flags, marks = character_tables().flags, token_marks()
        count = compiled.split_tokens(self.data, self.offsets, flags, marks, abbreviations(), chars, kind, exact, first)
        return Tokens(first, chars[:count], kind[:count], exact[:count])

    @cached_property
    def lines(self) -> Lines:
        """The lines of all texts; a text that ends with a newline has an empty last line."""
        compiled = kernels(KERNELS)
        most = int(compiled.count_newlines(self.data[self.offsets[0] : self.offsets[-1]])) + len(self)
        start, end, chars = (np.empty(most, dtype=np.int32) for _ in range(3))
        first = np.empty(len(self) + 1, dtype=np.int64)
        compiled.split_lines(self.data, self.offsets, start, end, chars, first)
        return Lines(first, start, end, chars)

    def keep(self, mask: NDArray[np.bool_]) -> "DocumentBatch":
        """Return the documents for which `mask` is True; cached words, tokens and lines are carried over."""
        if mask.all():
            return self
        batch = DocumentBatch(self.records.filter(pa.array(mask)))
        shifts = batch.offsets[:-1] - self.offsets[:-1][mask]
        batch.__dict__.update({name: _select_spans(self.__dict__[name], mask, shifts) for name in SPANS if name in self.__dict__})
        return batch

    def with_texts(self, texts: pa.LargeStringArray) -> "DocumentBatch":
        """Replace the texts; if at most half of the bytes changed, cached words, tokens and lines of other texts are reused."""
        schema = self.records.schema
        columns = [texts if name == "text" else self.records.column(name) for name in schema.names]
        batch = DocumentBatch(pa.record_batch(columns, schema=schema))
        cached = [name for name in SPANS if name in self.__dict__]
        if not cached or not len(self):
            return batch
        changed = pc.not_equal(self.records.column("text"), texts).to_numpy(zero_copy_only=False)
        if 2 * batch.sizes[changed].sum() <= batch.sizes.sum():
            rewritten = DocumentBatch(batch.records.filter(pa.array(changed)))
            shifts = batch.offsets[:-1] - self.offsets[:-1]
            shifts[changed] = batch.offsets[:-1][changed] - rewritten.offsets[:-1]
            batch.__dict__.update(
                {name: _merge_spans(self.__dict__[name], getattr(rewritten, name), changed, shifts) for name in cached}
            )
        return batch

    def with_columns(self, columns: Mapping[str, Sequence[str]]) -> "DocumentBatch":
        """Add columns of strings to the documents."""
        if not columns:
            return self
        more = {name: pa.array(values, pa.string()) for name, values in columns.items()}
        present = {name: self.records.column(name) for name in self.records.schema.names}
        batch = DocumentBatch(pa.record_batch({**present, **more}))
        batch.__dict__.update({name: self.__dict__[name] for name in SPANS if name in self.__dict__})  # the texts are unchanged
        return batch

    def rejections(self, rows: NDArray[np.int64], reasons: Sequence[str]) -> list[Rejection]:
        """Return a rejection for each of these rows, with its reason."""
        taken = self.records.select(["file", "line", "id", "source"]).take(pa.array(rows))
        starts = self.offsets[rows]
        ends = np.minimum(starts + HEAD_BYTES, self.offsets[rows + 1])
        heads = [
            self.data[start:end].tobytes().decode(errors="ignore")
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        ]
        columns = [column.to_pylist() for column in taken.columns]
        return [Rejection(*row) for row in zip(*columns, reasons, heads, strict=True)]


def _select_spans(spans: Spans, mask: NDArray[np.bool_], shifts: NDArray[np.int64]) -> Spans:
    """Return the spans of the texts selected by `mask`; text k of these moves by `shifts[k]` bytes."""
    counts = np.diff(spans.first)
    inside = np.repeat(mask, counts)
    columns = {name: column[inside] for name, column in spans._asdict().items() if name != "first"}
    for name in columns.keys() & {"start", "end"}:
        columns[name] += np.repeat(shifts.astype(np.int32), counts[mask])
    return type(spans)(first=np.concatenate([[0], np.cumsum(counts[mask])]), **columns)


def _merge_spans(spans: Spans, rewritten: Spans, changed: NDArray[np.bool_], shifts: NDArray[np.int64]) -> Spans:
    """Replace the spans of `changed` texts by those of `rewritten`; text k moves by `shifts[k]` bytes."""
    counts, begin = np.diff(spans.first), spans.first[:-1].copy()
    begin[changed] = spans.first[-1] + rewritten.first[:-1]  # after all unchanged ones
    counts[changed] = np.diff(rewritten.first)
    first = np.concatenate([[0], np.cumsum(counts)])
    positions = np.repeat(begin - first[:-1], counts) + np.arange(first[-1])
    columns = {
        name: np.concatenate([getattr(spans, name), getattr(rewritten, name)])[positions]
        for name in spans._fields
        if name != "first"
    }
    for name in columns.keys() & {"start", "end"}:
        columns[name] += np.repeat(shifts.astype(np.int32), counts)
    return type(spans)(first=first, **columns)

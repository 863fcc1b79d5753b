"""A batch of documents as Arrow columns; its words and lines are found once, for all filters and for MinHash."""

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
HEAD_BYTES = 400  # of a text that is dropped, for the report
TOKENS_KERNELS = "ropewalk.datapipe.text.tokens_kernels"


class Words(NamedTuple):
    """The words of all texts of a batch: what white space separates. Those of text k are [first[k], first[k + 1])."""

    first: NDArray[np.int64]
    start: NDArray[np.int32]  # first byte
    chars: NDArray[np.int32]
    kind: NDArray[np.uint8]  # the flags of its characters, and NOT_SYMBOL
    exact: NDArray[np.uint64]  # hash of the word
    folded: NDArray[np.uint64]  # hash of its letters and digits in lower case; 0: it has none


class Tokens(NamedTuple):
    """The English tokens of all texts: words with punctuation cut off. Those of text k are [first[k], first[k + 1])."""

    first: NDArray[np.int64]
    chars: NDArray[np.int32]
    kind: NDArray[np.uint8]  # the flags of its characters, and NOT_SYMBOL
    exact: NDArray[np.uint64]  # hash of the token


class Lines(NamedTuple):
    """What lies between the newlines of all texts of a batch. Those of text k are [first[k], first[k + 1])."""

    first: NDArray[np.int64]
    start: NDArray[np.int32]  # first byte
    end: NDArray[np.int32]
    chars: NDArray[np.int32]


Spans = TypeVar("Spans", Words, Tokens, Lines)
SPANS = ("words", "tokens", "lines")  # what a batch knows of its texts once it was asked for


@dataclass(frozen=True)
class DocumentBatch:
    """Some documents of one unit, in its order. Texts are seen as bytes; a filter that wants strings asks for `texts`."""

    records: pa.RecordBatch

    @classmethod
    def of(cls, documents: Sequence[Document]) -> "DocumentBatch":
        """A batch of documents that were read one by one."""
        columns: list[list[Any]] = [[getattr(d, name) for d in documents] for name in SCHEMA.names]
        return cls(pa.record_batch(columns, schema=SCHEMA))

    @classmethod
    def of_texts(cls, texts: Sequence[str]) -> "DocumentBatch":
        """A batch of bare texts, numbered from 1."""
        count = len(texts)
        columns = [[None] * count, [""] * count, list(range(1, count + 1)), [0] * count, list(texts)]
        return cls(pa.record_batch(columns, schema=SCHEMA))

    @classmethod
    def of_column(cls, texts: pa.LargeStringArray) -> "DocumentBatch":
        """A batch of texts of which nothing else is known: no other column is there."""
        return cls(pa.record_batch([texts], names=["text"]))

    def __len__(self) -> int:
        return int(self.records.num_rows)

    @property
    def texts(self) -> list[str]:
        """The texts as Python strings."""
        found: list[str] = self.records.column("text").to_pylist()
        return found

    def column(self, name: str) -> list[Any]:
        """A column as Python values."""
        values: list[Any] = self.records.column(name).to_pylist()
        return values

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Where each text begins in `data`, and the end of the last."""
        array = self.records.column("text")
        buffer = array.buffers()[1]
        return np.frombuffer(buffer, dtype=np.int64)[array.offset : array.offset + len(array) + 1]

    @cached_property
    def data(self) -> NDArray[np.uint8]:
        """The buffer in which the texts lie as UTF-8, one behind another."""
        buffer = self.records.column("text").buffers()[2]
        return np.frombuffer(buffer, dtype=np.uint8) if buffer else np.zeros(0, dtype=np.uint8)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """The bytes of each text."""
        return np.diff(self.offsets)

    @cached_property
    def words(self) -> Words:
        """The words of all texts."""
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
        """The English tokens of all texts."""
        compiled = kernels(TOKENS_KERNELS)
        most = int(compiled.most_tokens(self.data, int(self.offsets[0]), int(self.offsets[-1]))) + len(self)
        chars, kind = np.empty(most, dtype=np.int32), np.empty(most, dtype=np.uint8)
        exact, first = np.empty(most, dtype=np.uint64), np.empty(len(self) + 1, dtype=np.int64)
        flags, marks = character_tables().flags, token_marks()
        count = compiled.split_tokens(self.data, self.offsets, flags, marks, abbreviations(), chars, kind, exact, first)
        return Tokens(first, chars[:count], kind[:count], exact[:count])

    @cached_property
    def lines(self) -> Lines:
        """The lines of all texts; a text that ends with a newline has an empty one behind it."""
        compiled = kernels(KERNELS)
        most = int(compiled.count_newlines(self.data[self.offsets[0] : self.offsets[-1]])) + len(self)
        start, end, chars = (np.empty(most, dtype=np.int32) for _ in range(3))
        first = np.empty(len(self) + 1, dtype=np.int64)
        compiled.split_lines(self.data, self.offsets, start, end, chars, first)
        return Lines(first, start, end, chars)

    def keep(self, kept: NDArray[np.bool_]) -> "DocumentBatch":
        """The documents of these rows alone."""
        if kept.all():
            return self
        made = DocumentBatch(self.records.filter(pa.array(kept)))
        shifts = made.offsets[:-1] - self.offsets[:-1][kept]
        made.__dict__.update({name: _kept_spans(self.__dict__[name], kept, shifts) for name in SPANS if name in self.__dict__})
        return made

    def with_texts(self, texts: pa.LargeStringArray) -> "DocumentBatch":
        """The same documents with other texts; where few of them are others, the words and lines of the rest stay known."""
        schema = self.records.schema
        columns = [texts if name == "text" else self.records.column(name) for name in schema.names]
        made = DocumentBatch(pa.record_batch(columns, schema=schema))
        known = [name for name in SPANS if name in self.__dict__]
        if not known or not len(self):
            return made
        changed = pc.not_equal(self.records.column("text"), texts).to_numpy(zero_copy_only=False)
        if 2 * made.sizes[changed].sum() <= made.sizes.sum():
            own = DocumentBatch(made.records.filter(pa.array(changed)))
            shifts = made.offsets[:-1] - self.offsets[:-1]
            shifts[changed] = made.offsets[:-1][changed] - own.offsets[:-1]
            made.__dict__.update(
                {name: _changed_spans(self.__dict__[name], getattr(own, name), changed, shifts) for name in known}
            )
        return made

    def with_columns(self, columns: Mapping[str, Sequence[str]]) -> "DocumentBatch":
        """The same documents with what else is known of them."""
        if not columns:
            return self
        more = {name: pa.array(values, pa.string()) for name, values in columns.items()}
        known = {name: self.records.column(name) for name in self.records.schema.names}
        made = DocumentBatch(pa.record_batch({**known, **more}))
        made.__dict__.update({name: self.__dict__[name] for name in SPANS if name in self.__dict__})  # of the same texts
        return made

    def rejections(self, rows: NDArray[np.int64], reasons: Sequence[str]) -> list[Rejection]:
        """The rejections of the documents in these rows, each with its reason."""
        taken = self.records.select(["file", "line", "id", "source"]).take(pa.array(rows))
        starts = self.offsets[rows]
        ends = np.minimum(starts + HEAD_BYTES, self.offsets[rows + 1])
        heads = [
            self.data[start:end].tobytes().decode(errors="ignore")
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        ]
        columns = [column.to_pylist() for column in taken.columns]
        return [Rejection(*row) for row in zip(*columns, reasons, heads, strict=True)]


def _kept_spans(spans: Spans, kept: NDArray[np.bool_], shifts: NDArray[np.int64]) -> Spans:
    """The words, tokens or lines of the texts that are kept, each of which begins `shifts` bytes further on."""
    counts = np.diff(spans.first)
    inside = np.repeat(kept, counts)
    columns = {name: column[inside] for name, column in spans._asdict().items() if name != "first"}
    for name in columns.keys() & {"start", "end"}:
        columns[name] += np.repeat(shifts.astype(np.int32), counts[kept])
    return type(spans)(first=np.concatenate([[0], np.cumsum(counts[kept])]), **columns)


def _changed_spans(spans: Spans, own: Spans, changed: NDArray[np.bool_], shifts: NDArray[np.int64]) -> Spans:
    """The words, tokens or lines of texts of which some are changed and have their `own`; each text begins `shifts` bytes on."""
    counts, begin = np.diff(spans.first), spans.first[:-1].copy()
    begin[changed] = spans.first[-1] + own.first[:-1]  # behind all others
    counts[changed] = np.diff(own.first)
    first = np.concatenate([[0], np.cumsum(counts)])
    places = np.repeat(begin - first[:-1], counts) + np.arange(first[-1])
    columns = {
        name: np.concatenate([getattr(spans, name), getattr(own, name)])[places] for name in spans._fields if name != "first"
    }
    for name in columns.keys() & {"start", "end"}:
        columns[name] += np.repeat(shifts.astype(np.int32), counts)
    return type(spans)(first=first, **columns)

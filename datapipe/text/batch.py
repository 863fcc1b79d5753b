"""Many texts as one buffer of UTF-8 and offsets, which kernels read without creating a Python object for each text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ropewalk.datapipe.text.document_batch import DocumentBatch


@dataclass(frozen=True, kw_only=True)
class TextBatch:
    """Concatenated texts: text i is `data[offsets[i]:offsets[i + 1]]`, valid UTF-8. `offsets[0]` is 0."""

    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]  # [texts + 1]

    @classmethod
    def of(cls, texts: Sequence[str]) -> "TextBatch":
        """Build a batch from strings. Raises UnicodeEncodeError for a lone surrogate, which readers reject."""
        return cls.of_arrow(pa.array(texts, pa.large_string()))

    @classmethod
    def of_arrow(cls, texts: pa.LargeStringArray) -> "TextBatch":
        """Wrap the buffers of an Arrow array without nulls; nothing is copied."""
        _, offsets, data = texts.buffers()
        bounds = np.frombuffer(offsets, np.int64, len(texts) + 1, texts.offset * 8)
        raw = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
        return cls(data=raw[bounds[0] : bounds[-1]], offsets=bounds - bounds[0])

    @classmethod
    def of_documents(cls, batch: "DocumentBatch") -> "TextBatch":
        """Wrap the texts of a batch of documents; nothing is copied."""
        offsets = batch.offsets
        return cls(data=batch.data[offsets[0] : offsets[-1]], offsets=offsets - offsets[0])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_bytes(self) -> int:
        """Total size of all texts."""
        return int(self.offsets[-1])

    def raw(self, index: int) -> bytes:
        return self.data[self.offsets[index] : self.offsets[index + 1]].tobytes()

    def text(self, index: int) -> str:
        return self.raw(index).decode()

    def arrow(self) -> pa.LargeStringArray:
        """Return the texts as an Arrow array; nothing is copied."""
        return pa.LargeStringArray.from_buffers(len(self), pa.py_buffer(self.offsets), pa.py_buffer(self.data))

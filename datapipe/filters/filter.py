"""What a filter is: options, and a function from a batch of documents to the reasons for dropping some of them."""

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ropewalk.cluster.config import Section

if TYPE_CHECKING:
    import pyarrow as pa

    from ropewalk.datapipe.text.document_batch import DocumentBatch


WordKind = Literal["white_space", "tokens"]
WORDS: WordKind = Field(
    default="white_space",
    description="what counts as a word: what white space separates, or English tokens, punctuation apart, nearly as spacy cuts",
)


@dataclass(frozen=True)
class Verdict:
    """What a filter says of a batch: for each document 0, or the number from 1 of the reason why it is dropped.

    `texts` are the texts as the filter rewrites them, all of the batch, if it does; `counts` is what else it counts; `columns`
    is what it found of each document that others need.
    """

    reasons: tuple[str, ...]
    codes: Any  # [documents], integers; numpy is not imported where a job file is read
    texts: "pa.LargeStringArray | None" = None
    counts: dict[str, int] = field(default_factory=dict)
    columns: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, reasons: Iterable[str | None]) -> "Verdict":
        """The verdict of a reason, or None, for each document."""
        number: dict[str, int] = {}
        codes = [0 if reason is None else number.setdefault(reason, len(number) + 1) for reason in reasons]
        return cls(tuple(number), codes)


class Filter(Section):
    """Drops documents, batch by batch. The fields of a subclass are its options, which are part of a data set's lineage.

    A filter decides by the document and its options alone, so that a data set does not depend on who made it or in what order.
    """

    @abstractmethod
    def judge(self, batch: "DocumentBatch") -> Verdict:
        """The reasons for dropping documents, each one of a few words such as `too_short`, since they are counted."""

"""Interface of a filter: options, and a function from a batch of documents to the reasons for dropping some of them."""

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from ropewalk.cluster.section import Section
from ropewalk.datapipe.text.compiled import kernels

if TYPE_CHECKING:
    import pyarrow as pa

    from ropewalk.datapipe.text.document_batch import DocumentBatch


WordKind = Literal["white_space", "tokens"]
WORDS: WordKind = Field(
    default="white_space",
    description="definition of a word: separated by white space, or English tokens with punctuation split off, much like spacy's",
)


@dataclass(frozen=True)
class Verdict:
    """Result of a filter for a batch: for each document 0, or the number (from 1) of the reason why it is dropped.

    `texts` are the texts of the whole batch if the filter rewrites any; `counts` are further numbers for the report, such as
    dropped lines; `columns` are values of each document that later stages need, such as its language.
    """

    reasons: tuple[str, ...]
    codes: Any  # [documents], integers; numpy is not imported where a job file is read
    texts: "pa.LargeStringArray | None" = None
    counts: dict[str, int] = field(default_factory=dict)
    columns: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, reasons: Iterable[str | None]) -> "Verdict":
        """Build a verdict from a reason, or None, for each document."""
        number: dict[str, int] = {}
        codes = [0 if reason is None else number.setdefault(reason, len(number) + 1) for reason in reasons]
        return cls(tuple(number), codes)


class Filter(Section):
    """Base class of filters. The fields of a subclass are its options, which are recorded in the data set's manifest.

    A decision depends on the document and the options alone, so that the data set is independent of workers and their order.
    """

    @abstractmethod
    def judge(self, batch: "DocumentBatch") -> Verdict:
        """Return the reasons for dropping documents; reasons are counted, so use few different ones, such as `too_short`."""


class CompiledFilter(Filter):
    """Base class of filters whose decisions are made in a module that imports compiled kernels or large libraries."""

    judged_by: ClassVar[str]  # MODULE:FUNCTION; maps the filter and a batch to a verdict

    def judge(self, batch: "DocumentBatch") -> Verdict:
        module, _, function = self.judged_by.partition(":")
        verdict: Verdict = getattr(kernels(module), function)(self, batch)
        return verdict

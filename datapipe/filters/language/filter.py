"""The filter `language`: keep documents in some languages."""

from typing import TYPE_CHECKING

from pydantic import Field

from ropewalk.datapipe.filters.filter import Filter, Verdict
from ropewalk.datapipe.text.compiled import kernels

if TYPE_CHECKING:
    from ropewalk.datapipe.text.document_batch import DocumentBatch


class Language(Filter):
    """Keep documents in these languages, as identified by py3langid; `und` (undetermined) is code, noise or too little text."""

    keep: tuple[str, ...] = Field(
        default=(), description="ISO 639 codes of the languages to keep, such as [en, de]; empty: all except `und`"
    )
    min_confidence: float = Field(
        default=0.5, ge=0, le=1, description="texts with a lower probability are `und`; it is low for texts under 200 bytes"
    )
    code: bool = Field(default=True, description="treat texts that look like program code as `und`")

    def judge(self, batch: "DocumentBatch") -> Verdict:
        """Return the language as the reason for each dropped document; count kept documents by language."""
        verdict: Verdict = kernels("ropewalk.datapipe.filters.language.model").judge(self, batch)
        return verdict

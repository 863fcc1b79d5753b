"""The filter `language`: keep documents of some languages."""

from typing import TYPE_CHECKING

from pydantic import Field

from ropewalk.datapipe.filters.filter import Filter, Verdict
from ropewalk.datapipe.text.compiled import kernels

if TYPE_CHECKING:
    from ropewalk.datapipe.text.document_batch import DocumentBatch


class Language(Filter):
    """Keep documents of these languages, as py3langid tells them; a text of none is `und`: code, noise, too little to say."""

    keep: tuple[str, ...] = Field(
        default=(), description="languages by ISO 639 code, such as [en, de]; empty: all, but for those that are `und`"
    )
    min_confidence: float = Field(
        default=0.5, ge=0, le=1, description="a text of a lower probability is `und`; it is low for texts under 200 bytes"
    )
    code: bool = Field(default=True, description="whether a text that looks like program code is `und`")

    def judge(self, batch: "DocumentBatch") -> Verdict:
        """The code of the language as reason where it is none of those that are kept, and how many are kept of each."""
        verdict: Verdict = kernels("ropewalk.datapipe.filters.language.model").judge(self, batch)
        return verdict

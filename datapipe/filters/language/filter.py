"""The filter `language`: keep documents in some languages."""

from typing import ClassVar

from pydantic import Field

from ropewalk.datapipe.filters.filter import CompiledFilter


class Language(CompiledFilter):
    """Keep documents in these languages, as identified by py3langid; `und` (undetermined) is code, noise or too little text."""

    judged_by: ClassVar[str] = "ropewalk.datapipe.filters.language.model:judge"
    keep: tuple[str, ...] = Field(
        default=(), description="ISO 639 codes of the languages to keep, such as [en, de]; empty: all except `und`"
    )
    min_confidence: float = Field(
        default=0.5, ge=0, le=1, description="texts with a lower probability are `und`; it is low for texts under 200 bytes"
    )
    code: bool = Field(default=True, description="treat texts that look like program code as `und`")

"""The filter `language`: keep documents in some languages."""

from typing import ClassVar

from pydantic import Field, field_validator

from ropewalk.datapipe.filters.filter import CompiledFilter

UNKNOWN = "und"
CODES = (  # languages that py3langid identifies
    "ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu ext fa fi fo fr fuv fy ga gcf"
    " gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy id ig is it ja jv ka kab kik kk km kn ko ku ky la lb lg lij ln lo lt"
    " ltg lv mg mk ml mn mr ms mt my ne nl nn no nso oc om or pa pcm pl ps pt qu ro ru rw sa sdh se si sk sl sn so sq sr st sv sw"
    " ta te tg th tk tl tr tt ug uk ur uz uzs vec vi vo wa wuu xh yo yue zh zu"
)


class Language(CompiledFilter):
    """Keep documents in these languages, as identified by py3langid; `und` (undetermined) is code, noise or too little text."""

    judged_by: ClassVar[str] = "ropewalk.datapipe.filters.language.model:judge"
    keep: tuple[str, ...] = Field(
        default=(), description="ISO 639 codes of the languages to keep, such as [en, de]; empty: all except `und`"
    )

    @field_validator("keep")
    @classmethod
    def _identified(cls, keep: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [code for code in keep if code not in {UNKNOWN, *CODES.split()}]:
            raise ValueError(
                f"{unknown[0]!r} is not the code of a language that can be identified; write ISO 639 codes such as en (all:"
                f" {CODES})"
            )
        return keep

    min_confidence: float = Field(
        default=0.5, ge=0, le=1, description="texts with a lower probability are `und`; it is low for texts under 200 bytes"
    )
    code: bool = Field(default=True, description="treat texts that look like program code as `und`")

"""The filter `pii`: put placeholders where personal data stand."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ropewalk.datapipe.filters.filter import Filter, Verdict
from ropewalk.datapipe.text.compiled import kernels

if TYPE_CHECKING:
    from ropewalk.datapipe.text.document_batch import DocumentBatch

Kind = Literal["email", "phone", "ip", "card", "iban", "national_id"]


class PersonalData(Filter):
    """Replace personal data by placeholders such as <EMAIL>, and count them; no document is dropped."""

    replace: tuple[Kind, ...] = Field(
        default=("email", "phone", "ip", "card", "iban"),
        description="what is replaced: email, phone, ip, card (by Luhn's check digit), iban (mod 97), national_id (of 18 states)",
    )

    def judge(self, batch: "DocumentBatch") -> Verdict:
        """The texts with placeholders, and how many of each kind."""
        verdict: Verdict = kernels("ropewalk.datapipe.filters.privacy.replace").judge(self, batch)
        return verdict

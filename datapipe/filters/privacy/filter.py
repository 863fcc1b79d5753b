"""The filter `pii`: replace personal data by placeholders."""

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
        description="kinds of data to replace: email, phone, ip, card (Luhn check digit), iban (mod 97), national_id",
    )

    def judge(self, batch: "DocumentBatch") -> Verdict:
        """Return the texts with placeholders, and the number of each kind; no document is dropped."""
        verdict: Verdict = kernels("ropewalk.datapipe.filters.privacy.replace").judge(self, batch)
        return verdict

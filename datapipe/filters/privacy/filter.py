"""The filter `pii`: replace personal data by placeholders."""

from typing import ClassVar, Literal

from pydantic import Field

from ropewalk.datapipe.filters.filter import CompiledFilter

Kind = Literal["email", "phone", "ip", "card", "iban", "national_id"]


class PersonalData(CompiledFilter):
    """Replace personal data by placeholders such as <EMAIL>, and count them; no document is dropped."""

    judged_by: ClassVar[str] = "ropewalk.datapipe.filters.privacy.replace:judge"
    replace: tuple[Kind, ...] = Field(
        default=("email", "phone", "ip", "card", "iban"),
        description="kinds of data to replace: email, phone, ip, card (Luhn check digit), iban (mod 97), national_id",
    )

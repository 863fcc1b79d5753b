"""The keys of capturing: which exchanges are kept, for how long, and which personal data are masked in them."""

from typing import get_args

from pydantic import Field

from ropewalk.cluster.config import Section
from ropewalk.datapipe.filters.privacy.filter import Kind

KINDS: tuple[Kind, ...] = get_args(Kind)


class CaptureConfig(Section):
    """What an endpoint keeps of the requests that it answers. Nothing of their content is kept where this is unset."""

    share: float = Field(default=1.0, gt=0, le=1, description="share of conversations that are captured, drawn by their hash")
    retention_days: float = Field(default=30.0, gt=0, description="exchanges and feedback that are older are deleted")
    max_bytes: int = Field(default=10 * 2**30, ge=2**20, description="of captured exchanges at most; the oldest ones go first")
    mask: tuple[Kind, ...] = Field(
        default=KINDS,
        description="personal data that are replaced by placeholders before anything is written: email, phone, ip, card, iban, "
        "national_id; names and addresses are not recognised",
    )

"""Configuration keys of capture."""

from typing import get_args

from pydantic import Field

from ropewalk.cluster.section import Section
from ropewalk.datapipe.filters.privacy.filter import Kind

KINDS: tuple[Kind, ...] = get_args(Kind)


class CaptureConfig(Section):
    """Parts of requests and answers that an endpoint stores; without this section no content is stored.

    Runs that learn from them send only figures to W&B, no texts, unless `wandb.tables` says otherwise.
    """

    share: float = Field(default=1.0, gt=0, le=1, description="share of conversations to capture, selected by hash")
    retention_days: float = Field(
        default=30.0,
        gt=0,
        description="days after which exchanges are deleted, with their ratings, second answers and judgements",
    )
    max_bytes: int = Field(
        default=10 * 2**30,
        ge=2**20,
        description="maximum bytes of exchanges and all feedback on them; the oldest are deleted first",
    )
    mask: tuple[Kind, ...] = Field(
        default=KINDS,
        description="personal data to replace by placeholders before anything is stored: email, phone, ip, card, iban, "
        "national_id; names and addresses are not recognised",
    )

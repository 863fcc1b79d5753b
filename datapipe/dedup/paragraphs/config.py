"""The key `paragraphs`. It is light, as the command line reads it."""

from typing import Literal

from pydantic import Field

from ropewalk.cluster.config import Section


class Paragraphs(Section):
    """Cut paragraphs out of texts that stand in an earlier document or earlier in the same one, byte by byte; the first stays."""

    of: Literal["blank_lines", "lines"] = Field(
        default="blank_lines", description="what is one: what blank lines separate, or a line, as web pages have them"
    )
    min_bytes: int = Field(default=50, ge=1, description="shorter ones stay, however often they occur")

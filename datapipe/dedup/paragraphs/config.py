"""The key `paragraphs` of a job file."""

from typing import Literal

from pydantic import Field

from ropewalk.cluster.section import Section


class Paragraphs(Section):
    """Remove paragraphs that occur, byte for byte, in an earlier document or earlier in the same one; the first is kept."""

    of: Literal["blank_lines", "lines"] = Field(
        default="blank_lines",
        description="definition of a paragraph: separated by blank lines, or each line, as in web pages",
    )
    min_bytes: int = Field(default=50, ge=1, description="keep shorter paragraphs, however often they occur")

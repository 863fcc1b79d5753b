"""The filter `min_words`: drop documents of few words."""

from pydantic import Field

from datapipe.document import Document
from datapipe.filters.filter import Filter


class MinWords(Filter):
    """Drop documents with fewer words than this; words are what white space separates."""

    words: int = Field(default=50, ge=1, description="the least number of words")

    def reject(self, document: Document) -> str | None:
        """`too_few`, or None."""
        return "too_few" if len(document.text.split(None, self.words)) < self.words else None

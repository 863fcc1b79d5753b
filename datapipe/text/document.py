"""A document as it is read, and the rejection of one that is not let in."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rejection:
    """A document that is not let in and why, or a file whose rest cannot be read (`damaged_file`)."""

    file: int
    line: int
    id: str | None
    source: str
    reason: str
    head: str = ""  # of the text, for the report


@dataclass(frozen=True, slots=True)
class Document:
    """A text that is let in; `id` is None where the record has none: such a document is named by file and line."""

    file: int  # index in the unit's files
    line: int  # from 1, counted from the unit's start
    id: str | None
    source: str
    text: str

    def rejected(self, reason: str) -> Rejection:
        """The rejection of this document."""
        return Rejection(self.file, self.line, self.id, self.source, reason)

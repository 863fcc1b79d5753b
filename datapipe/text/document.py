"""A document as it is read from the input, the record of a rejected one, and a document with its final id."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rejection:
    """A document that was dropped and the reason, or a file that cannot be read to its end (`damaged_file`)."""

    file: int
    line: int
    id: str | None
    source: str
    reason: str
    head: str = ""  # first bytes of the text, for the report


@dataclass(frozen=True, slots=True)
class Document:
    """A text of the input. `id` is None if the record has none; the document is then identified by file and line."""

    file: int  # index in the unit's files
    line: int  # from 1, counted from the unit's start
    id: str | None
    source: str
    text: str

    def rejection(self, reason: str) -> Rejection:
        return Rejection(self.file, self.line, self.id, self.source, reason)


@dataclass(frozen=True, slots=True)
class NamedDocument:
    """A document with its final id."""

    id: str
    source: str
    text: str
    line: int  # in the whole file, from 1

"""The bytes of one direction of a connection, by their position in it, kept in the journal for as long as they are needed."""

from ropewalk.jobs.serving.serve.gateway.sockets.blocks import Extent
from ropewalk.jobs.serving.serve.gateway.sockets.journal import BEGINS, Field, Journal, anchor_of, extent_of, word_of

_LEAST_BYTES = 2**14


class Tape:
    """Positions `start` to `end` of a direction. Bytes before `start` are gone; `end` is where the next ones go."""

    def __init__(self, journal: Journal, record: int, place: Field, end: int, limit_bytes: int = 0) -> None:
        self._journal, self._record, self._place, self._begin = journal, record, place, BEGINS[place]
        begin = self._begin
        self._limit_bytes = limit_bytes
        self.start, self.end = journal.read(record, begin), end
        self._extent: Extent | None = None
        self._view = memoryview(b"")
        self._anchor = self.start
        if word := journal.read(record, place):
            self._hold(extent_of(word), anchor_of(word))

    def __len__(self) -> int:
        return self.end - self.start

    @property
    def full(self) -> bool:
        """Whether as many bytes are kept as may be."""
        return len(self) >= self._limit_bytes

    def room(self, num_bytes: int) -> memoryview:
        """Where the next bytes go: at least so many, up to as many as there is room for. Raises JournalFullError."""
        at = self.end - self._anchor
        if len(self._view) - at < num_bytes:
            self._move(num_bytes)
            at = self.end - self._anchor
        return self._view[at:]

    def append(self, data: bytes) -> None:
        """Write bytes at the end; the caller says so in the journal. Raises JournalFullError."""
        self.room(len(data))[: len(data)] = data
        self.end += len(data)

    def read(self, begin: int, end: int) -> memoryview:
        """The bytes between two positions. They are only good until the next call that changes the tape."""
        return self._view[begin - self._anchor : end - self._anchor]

    def drop(self, until: int) -> None:
        """Forget what lies before a position."""
        self.start = until
        self._journal.write(self._record, self._begin, until)
        if until == self.end and self._extent is not None:
            self._journal.write(self._record, self._place, 0)
            self._journal.free_extent(self._extent)
            self._extent, self._view, self._anchor = None, memoryview(b""), until

    def _move(self, num_bytes: int) -> None:
        """Into another extent, which begins with the first byte that is needed."""
        needed = len(self) + num_bytes
        extent = self._journal.take_extent(max(_LEAST_BYTES, needed if self._extent is None else 2 * needed))
        view = self._journal.bytes_of(extent)
        view[: len(self)] = self.read(self.start, self.end)
        self._journal.write(self._record, self._place, word_of(extent, self.start))
        old = self._extent
        self._hold(extent, self.start)
        if old is not None:
            self._journal.free_extent(old)

    def _hold(self, extent: Extent, anchor: int) -> None:
        self._extent, self._view, self._anchor = extent, self._journal.bytes_of(extent), anchor

"""The journal: what an exchange has received and sent, in memory that outlives the gateway.

A memory file of the keeper, mapped by the gateway: never on a disk, since it holds what people write. Each field is one aligned
machine word, stored at once, so that a kill at any moment leaves either the old value or the new one. What the kernel counts
(bytes read from a socket, bytes written to it) is not repeated here.

    header      connections, archive entries, the generation of the gateway
    records     one a connection: where its bytes lie, and its open exchange
    archive     a word an entry: exchanges that are over, and not yet written down for good by the capture
    blocks      the bytes: extents of 4 KiB and more
"""

import mmap
import os
from collections.abc import Iterator
from enum import IntEnum

from ropewalk.jobs.serving.serve.gateway.sockets.blocks import BLOCK_BYTES, Blocks, Extent

_WORD = 8
_HEADER_BYTES = 4096
_RECORD_WORDS = 64
NOTE_WORD = 16  # of a record: from here on its note lies
NOTE_BYTES = (_RECORD_WORDS - NOTE_WORD) * _WORD
_ARCHIVE_ENTRIES = 2**16
_RELEASED_BYTES = 2**18  # extents of this size and more go back to the system when they are free
_ORDER_BITS, _FIRST_BITS = 5, 25


class Field(IntEnum):
    """Words of a record."""

    NUMBER = 0  # the keeper's number of the connection; 0: the record is free
    INPUT = 1  # where received bytes lie
    INPUT_START = 2  # position in the connection's input at which the current request begins
    OUTPUT = 3  # where sent bytes lie
    OUTPUT_START = 4  # position in the connection's output of the first byte that is kept
    OUTPUT_END = 5  # position after the last byte that is to be sent
    OPEN_AT = 6  # INPUT_START + 1 while an exchange is open
    EXCHANGE = 7  # its number
    ARRIVED = 8  # nanoseconds since the epoch
    DEADLINE = 9  # nanoseconds since the epoch
    ADOPTED = 10  # how many gateways have taken it over
    NOTE_BYTES = 11  # length of the note: which version answers, and the like
    TOKENS = 12  # where the tokens of the answer lie
    TOKENS_START = 13
    TOKENS_END = 14


# words that tell where bytes lie, and the position of the first of them that is needed
BEGINS = {Field.INPUT: Field.INPUT_START, Field.OUTPUT: Field.OUTPUT_START, Field.TOKENS: Field.TOKENS_START}


class Header(IntEnum):
    """Words of the header."""

    RECORDS = 0
    GENERATION = 1  # how many gateways have led
    EXCHANGES = 2  # how many exchanges have begun
    NONCE = 3  # drawn by the keeper: exchanges of two keepers have different ids


class Journal:
    """The mapped file: words and extents. One process at a time may write."""

    def __init__(self, descriptor: int) -> None:
        self.map = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
        self.view = memoryview(self.map)
        self.words = self.view[: len(self.view) // _WORD * _WORD].cast("Q")
        self.num_records = self.words[Header.RECORDS]
        self._archive_word = (_HEADER_BYTES + self.num_records * _RECORD_WORDS * _WORD) // _WORD
        self._blocks_at = _blocks_at(self.num_records)
        self.blocks = Blocks((len(self.view) - self._blocks_at) // BLOCK_BYTES, self._used())
        self._free_records = [r for r in range(self.num_records - 1, -1, -1) if not self.read(r, Field.NUMBER)]
        self._free_entries = [e for e in range(_ARCHIVE_ENTRIES - 1, -1, -1) if not self.words[self._archive_word + e]]

    def add_to_header(self, field: Header) -> int:
        """Count one more; the new number."""
        self.words[field] += 1
        return self.words[field]

    @property
    def nonce(self) -> int:
        """A number that no other keeper's journal has."""
        return self.words[Header.NONCE]

    # --- records

    def read(self, record: int, field: int) -> int:
        """A word of a record."""
        return self.words[_HEADER_BYTES // _WORD + record * _RECORD_WORDS + field]

    def write(self, record: int, field: int, value: int) -> None:
        """Store a word of a record."""
        self.words[_HEADER_BYTES // _WORD + record * _RECORD_WORDS + field] = value

    def take_record(self, number: int) -> int:
        """A record for a connection. Raises IndexError where all are taken."""
        record = self._free_records.pop()
        for field in Field:
            self.write(record, field, 0)
        self.write(record, Field.NUMBER, number)
        return record

    def free_record(self, record: int) -> None:
        """Make a record free, and its extents."""
        used = [word for field in BEGINS if (word := self.read(record, field))]
        self.write(record, Field.NUMBER, 0)
        for word in used:
            self.free_extent(extent_of(word))
        self._free_records.append(record)

    def records(self) -> Iterator[tuple[int, int]]:
        """(record, number of the connection) of those that are taken."""
        for record in range(self.num_records):
            if number := self.read(record, Field.NUMBER):
                yield record, number

    def read_note(self, record: int) -> bytes:
        """The note of a record."""
        start = self._note_at(record)
        return bytes(self.view[start : start + self.read(record, Field.NOTE_BYTES)])

    def write_note(self, record: int, note: bytes) -> None:
        """Store a note; one that is too long is not stored at all."""
        start = self._note_at(record)
        self.write(record, Field.NOTE_BYTES, 0)
        if len(note) <= NOTE_BYTES:
            self.view[start : start + len(note)] = note
            self.write(record, Field.NOTE_BYTES, len(note))

    @staticmethod
    def _note_at(record: int) -> int:
        return _HEADER_BYTES + (record * _RECORD_WORDS + NOTE_WORD) * _WORD

    # --- extents

    def take_extent(self, num_bytes: int) -> Extent:
        """Room for so many bytes. Raises JournalFullError."""
        return self.blocks.take(num_bytes)

    def free_extent(self, extent: Extent) -> None:
        """Give room back."""
        if extent.num_bytes >= _RELEASED_BYTES:
            self.map.madvise(mmap.MADV_REMOVE, self._blocks_at + extent.first * BLOCK_BYTES, extent.num_bytes)
        self.blocks.give_back(extent)

    def bytes_of(self, extent: Extent) -> memoryview:
        """The bytes of an extent, to read and to write."""
        start = self._blocks_at + extent.first * BLOCK_BYTES
        return self.view[start : start + extent.num_bytes]

    # --- archive

    def keep(self, raw: bytes) -> int:
        """Keep bytes until `forget`; the entry that holds them. Raises JournalFullError or IndexError."""
        extent = self.take_extent(len(raw) + _WORD)
        view = self.bytes_of(extent)
        view[:_WORD] = len(raw).to_bytes(_WORD, "little")
        view[_WORD : _WORD + len(raw)] = raw
        entry = self._free_entries.pop()
        self.words[self._archive_word + entry] = word_of(extent)
        return entry

    def forget(self, entry: int) -> None:
        """Let go of what `keep` has kept."""
        extent = extent_of(self.words[self._archive_word + entry])
        self.words[self._archive_word + entry] = 0
        self._free_entries.append(entry)
        self.free_extent(extent)

    def kept(self) -> Iterator[tuple[int, bytes]]:
        """(entry, bytes) of all that is kept."""
        for entry in range(_ARCHIVE_ENTRIES):
            if word := self.words[self._archive_word + entry]:
                view = self.bytes_of(extent_of(word))
                length = int.from_bytes(view[:_WORD], "little")
                yield entry, bytes(view[_WORD : _WORD + length])

    def _used(self) -> Iterator[Extent]:
        for record, _ in self.records():
            yield from (extent_of(word) for field in BEGINS if (word := self.read(record, field)))
        for entry in range(_ARCHIVE_ENTRIES):
            if word := self.words[self._archive_word + entry]:
                yield extent_of(word)


def create_journal(num_records: int, num_bytes: int) -> int:
    """A new journal in a memory file: its descriptor. Memory is taken as it is used."""
    descriptor = os.memfd_create("ropewalk-journal", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, _blocks_at(num_records) + num_bytes // BLOCK_BYTES * BLOCK_BYTES)
    os.pwrite(descriptor, num_records.to_bytes(_WORD, "little"), Header.RECORDS * _WORD)
    os.pwrite(descriptor, os.urandom(_WORD), Header.NONCE * _WORD)
    return descriptor


def word_of(extent: Extent, anchor: int = 0) -> int:
    """An extent, and the position of its first byte, in one word; 0 is none."""
    return anchor << (_ORDER_BITS + _FIRST_BITS) | extent.first << _ORDER_BITS | extent.order + 1


def extent_of(word: int) -> Extent:
    """The extent that a word tells of."""
    return Extent((word >> _ORDER_BITS) & ((1 << _FIRST_BITS) - 1), (word & ((1 << _ORDER_BITS) - 1)) - 1)


def anchor_of(word: int) -> int:
    """The position of an extent's first byte."""
    return word >> (_ORDER_BITS + _FIRST_BITS)


def _blocks_at(num_records: int) -> int:
    unaligned = _HEADER_BYTES + num_records * _RECORD_WORDS * _WORD + _ARCHIVE_ENTRIES * _WORD
    return -(-unaligned // BLOCK_BYTES) * BLOCK_BYTES

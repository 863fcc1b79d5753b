"""Token ids of the sent part of a stream, stored in the journal.

Each entry holds the output position up to which it is valid: an entry whose bytes were not written because of a crash is ignored.
"""

import struct

from ropewalk.jobs.serving.serve.gateway.sockets.journal import Field, Journal
from ropewalk.jobs.serving.serve.gateway.sockets.tape import Tape

_HEAD = struct.Struct("<QBI")
_PROMPT, _ANSWER = 0, 1


class TokenLog:
    """Token ids of the open exchange on a connection."""

    def __init__(self, journal: Journal, record: int, limit_bytes: int) -> None:
        self._journal, self._record = journal, record
        end = journal.read(record, Field.TOKENS_END)
        self._tape = Tape(journal, record, Field.TOKENS, end, limit_bytes)

    def add(self, output_end: int, prompt_ids: list[int], token_ids: list[int]) -> None:
        """Record token ids, before their bytes are written up to `output_end`."""
        if prompt_ids:
            self._append(output_end, _PROMPT, prompt_ids)
        self._append(output_end, _ANSWER, token_ids)

    def _append(self, output_end: int, kind: int, ids: list[int]) -> None:
        self._tape.append(_HEAD.pack(output_end, kind, len(ids)) + struct.pack(f"<{len(ids)}i", *ids))
        self._journal.write(self._record, Field.TOKENS_END, self._tape.end)

    def read(self, output_end: int) -> tuple[list[int], list[int] | None]:
        """Return (prompt ids, answer ids or None if none were reported) up to an output position."""
        raw = self._tape.read(self._tape.start, self._tape.end)
        prompt: list[int] = []
        answer: list[int] | None = None
        offset = 0
        while offset < len(raw):
            position, kind, count = _HEAD.unpack_from(raw, offset)
            ids = struct.unpack_from(f"<{count}i", raw, offset + _HEAD.size)
            offset += _HEAD.size + 4 * count
            if position > output_end:
                break
            if kind == _PROMPT:
                prompt += ids
            else:
                answer = [*(answer or ()), *ids] if answer is None else answer + list(ids)
        return prompt, answer

    def clear(self) -> None:
        """Remove all entries, at the start or end of an exchange."""
        self._tape.drop(self._tape.end)

"""Which tokens the sent part of a stream came of, beside its bytes in the journal.

Each entry has the position in the output up to which it tells: an entry that was written, while a kill prevented its bytes from
being written, is not counted.
"""

import struct

from ropewalk.jobs.serving.serve.gateway.sockets.journal import Field, Journal
from ropewalk.jobs.serving.serve.gateway.sockets.tape import Tape

_HEAD = struct.Struct("<QBI")
_PROMPT, _ANSWER = 0, 1


class Tokens:
    """The tokens of the exchange that is open on a connection."""

    def __init__(self, journal: Journal, record: int, limit_bytes: int) -> None:
        self._journal, self._record = journal, record
        end = journal.read(record, Field.TOKENS_END)
        self._tape = Tape(journal, record, Field.TOKENS, end, limit_bytes)

    def add(self, output_end: int, prompt_ids: list[int], token_ids: list[int]) -> None:
        """Note tokens, before the bytes that came of them are written up to `output_end`."""
        if prompt_ids:
            self._append(output_end, _PROMPT, prompt_ids)
        self._append(output_end, _ANSWER, token_ids)

    def _append(self, output_end: int, kind: int, ids: list[int]) -> None:
        self._tape.append(_HEAD.pack(output_end, kind, len(ids)) + struct.pack(f"<{len(ids)}i", *ids))
        self._journal.write(self._record, Field.TOKENS_END, self._tape.end)

    def read(self, output_end: int) -> tuple[list[int], list[int] | None]:
        """(Tokens of the prompt, tokens of the answer or None where none were told), up to a position in the output."""
        raw = self._tape.read(self._tape.start, self._tape.end)
        prompt: list[int] = []
        answer: list[int] | None = None
        at = 0
        while at < len(raw):
            position, kind, count = _HEAD.unpack_from(raw, at)
            ids = struct.unpack_from(f"<{count}i", raw, at + _HEAD.size)
            at += _HEAD.size + 4 * count
            if position > output_end:
                break
            if kind == _PROMPT:
                prompt += ids
            else:
                answer = [*(answer or ()), *ids] if answer is None else answer + list(ids)
        return prompt, answer

    def clear(self) -> None:
        """Forget all: the exchange is over, or begins."""
        self._tape.drop(self._tape.end)

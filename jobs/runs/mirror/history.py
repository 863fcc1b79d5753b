"""Many lines of a W&B run's history in one write to wandb-core: `run.log` takes each to another thread and back."""

import struct
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import orjson
from wandb.proto.wandb_server_pb2 import ServerRequest

_MAGIC = ord("W")  # of a message to wandb-core, before its length in four bytes
MOST_AT_ONCE = 1000  # lines
Numbered = tuple[int, Mapping[str, Any]]  # a line's number, and its values: texts and finite numbers


class History(Protocol):
    """Takes lines of a W&B run's history."""

    def send(self, lines: Sequence[Numbered]) -> None:
        """Hand over lines, in order. Raises whatever wandb raises."""
        ...


class LoggedHistory:
    """By `run.log`: any value of W&B's, any version of it."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def send(self, lines: Sequence[Numbered]) -> None:
        """Hand over one after the other."""
        for number, values in lines:
            self._run.log(dict(values), step=number, commit=True)  # else it would wait for the next


class WrittenHistory:
    """By the messages that `run.log` sends, some thousand at once."""

    def __init__(self, run: Any) -> None:
        """Raises AttributeError where wandb is another one inside than it was (0.21 to 0.31)."""
        interface = run._interface
        self._client, self._asyncer, self._stream = interface._client, interface._asyncer, str(interface._stream_id)
        self._writer = self._client._writer

    def send(self, lines: Sequence[Numbered]) -> None:
        """Hand over all lines, and wait until the socket has taken them."""
        for begin in range(0, len(lines), MOST_AT_ONCE):
            raw = b"".join(self._message(number, values) for number, values in lines[begin : begin + MOST_AT_ONCE])
            self._asyncer.run(partial(self._write, raw))

    async def _write(self, raw: bytes) -> None:
        self._writer.write(raw)
        await self._writer.drain()

    def _message(self, number: int, values: Mapping[str, Any]) -> bytes:
        request = ServerRequest()
        record = request.record_publish
        record._info.stream_id = self._stream
        history = record.request.partial_history
        history.step.num = number
        history.action.flush = True
        for key, value in values.items():
            history.item.add(key=key, value_json=orjson.dumps(value).decode())
        raw: bytes = request.SerializeToString()
        return struct.pack("<BI", _MAGIC, len(raw)) + raw


def history_of(run: Any) -> History:
    """The quickest way into the history of an open W&B run."""
    try:
        return WrittenHistory(run)
    except AttributeError:
        return LoggedHistory(run)

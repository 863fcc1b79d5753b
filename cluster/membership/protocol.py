"""Messages of a session between an agent and its coordinator: one JSON object per line, with a heartbeat twice a second.

The handshake is a challenge of the coordinator, a hello of the agent and a welcome: see `handshake`. The hello names a session.
After that both sides number their messages (`n`) and acknowledge those of the other side (`got`), so that a session survives the
loss of its connection.
"""

import json
from collections import deque
from typing import Any

Message = dict[str, Any]

LONGEST_BYTES = 64 * 1024  # of a line
BEAT_SECONDS = 0.5
SILENCE_SECONDS = max(2.0, 4 * BEAT_SECONDS)  # without a message: the other side is dead or disconnected, whatever its ranks do
RETURN_SECONDS = 0.2  # for an agent to come back after its connection was closed


def pack(message: Message) -> bytes:
    """Encode a message as a line."""
    return json.dumps(message).encode() + b"\n"


def unpack(line: bytes) -> Message:
    """Decode a line. Raises ValueError if it is not a message."""
    message = json.loads(line)
    if not isinstance(message, dict) or not isinstance(message.get("say"), str):
        raise ValueError(f"not a message: {line[:80]!r}")
    return message


class Channel:
    """One end of a session: numbers messages, and delivers those of the other end once and in order, over any connections."""

    def __init__(self) -> None:
        self.received = 0
        self._sent = 0
        self._resend_to = 0  # newest message at the last heartbeat: those up to it have waited for a whole interval
        self._pending: deque[Message] = deque()

    def number(self, message: Message) -> Message:
        """Return the message as it is sent, with its number; it is kept until it is acknowledged."""
        self._sent += 1
        self._pending.append({**message, "n": self._sent})
        return {**self._pending[-1], "got": self.received}

    def receive(self, message: Message) -> Message | None:
        """Take a message of the other end; return it if it is the next one, and None for heartbeats, copies and gaps."""
        self.acknowledge(message["got"])
        number = message.get("n")
        if number != self.received + 1:
            return None
        self.received += 1
        return message

    def acknowledge(self, number: int) -> None:
        while self._pending and self._pending[0]["n"] <= number:
            self._pending.popleft()

    def pending(self) -> list[Message]:
        """Return all messages that were not acknowledged, to be sent over a new connection."""
        return [{**message, "got": self.received} for message in self._pending]

    def beat(self) -> list[Message]:
        """Return a heartbeat, and before it the messages that were not acknowledged since the last one."""
        late = [message for message in self.pending() if message["n"] <= self._resend_to]
        self._resend_to = self._sent
        return [*late, {"say": "beat", "got": self.received}]

"""Messages between an agent and its coordinator: one JSON object per line, with a heartbeat twice a second.

The handshake is a challenge of the coordinator, a hello of the agent and a welcome: see `handshake`. The hello names a session.
After that both sides number their messages (`n`) and acknowledge those of the other side (`got`), so that a session survives the
loss of its connection: see `channel`.
"""

import json
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]

LONGEST_BYTES = 64 * 1024  # of a line


@dataclass(frozen=True)
class Limits:
    """Seconds after which the two sides of a session give each other up."""

    beat_seconds: float = 0.5
    least_silence_seconds: float = 2.0
    return_seconds: float = 0.2  # for an agent to come back after its connection was closed

    @property
    def silence_seconds(self) -> float:
        """Seconds without a message after which the other side is dead or disconnected, whatever its ranks do."""
        return max(self.least_silence_seconds, 4 * self.beat_seconds)


def pack(message: Message) -> bytes:
    """Encode a message as a line."""
    return json.dumps(message).encode() + b"\n"


def unpack(line: bytes) -> Message:
    """Decode a line. Raises ValueError if it is not a message."""
    message = json.loads(line)
    if not isinstance(message, dict) or not isinstance(message.get("say"), str):
        raise ValueError(f"not a message: {line[:80]!r}")
    return message

"""What pods of a run say to each other: one JSON object a line, and a beat a second as long as all is well.

Whoever carries the run begins with a challenge, which a pod answers with its hello (who it is), and that with a welcome: see
`k8s.runtime.handshake`. Then a pod says ended (its agent has left, with which code), leaving (it was asked to go). Whoever
carries the run says start (an agent, with its place in the attempt), store (the group's, beside the coordinator), stop and kill
(one of the two), regroup (end its ranks: a peer is dead), over (the run is). No word of it is a command line.
"""

import json
from typing import Any

Message = dict[str, Any]

BEAT_SECONDS = 1.0
LOST_SECONDS = 6.0  # of silence: the other side is dead or cut off
LONGEST_BYTES = 64 * 1024

BEAT: Message = {"say": "beat"}


def pack(message: Message) -> bytes:
    """A message as it is sent."""
    return json.dumps(message).encode() + b"\n"


def unpack(line: bytes) -> Message:
    """A line as a message. Raises ValueError if it is none."""
    message = json.loads(line)
    if not isinstance(message, dict) or not isinstance(message.get("say"), str):
        raise ValueError(f"not a message: {line[:80]!r}")
    return message

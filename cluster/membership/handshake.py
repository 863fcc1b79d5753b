"""Handshake with which an agent and its coordinator authenticate to each other: both have a key, and neither sends it.

Each side sends a random number that is used once, and the other side signs it with its answer: the hello answers the challenge,
and the welcome answers the hello. So a recorded hello cannot be replayed, and an agent executes commands of the real coordinator
only.
"""

import json
import secrets

from ropewalk.cluster.membership.protocol import Message
from ropewalk.cluster.run.key import is_signature, sign

NONCE_BYTES = 16


def new_nonce() -> str:
    """Return a random number that is used once."""
    return secrets.token_hex(NONCE_BYTES)


def sign_answer(key: str, nonce: str, message: Message) -> Message:
    """Return a hello or a welcome as the answer to the other side's number."""
    return {**message, "proof": sign(key, message["say"], nonce.encode(), _text(message)).hex()}


def is_answer(key: str, nonce: str, kind: str, message: Message) -> bool:
    """Return True if a message of this kind answers `nonce` and its sender has the key. Raises ValueError if it has no proof."""
    if message["say"] != kind:
        return False
    signed = {name: value for name, value in message.items() if name != "proof"}
    return is_signature(key, bytes.fromhex(str(message.get("proof"))), kind, nonce.encode(), _text(signed))


def _text(message: Message) -> bytes:
    return json.dumps(message, sort_keys=True).encode()

"""Secrets of an attempt: random keys in files that only the run's user can read, and what they sign.

Whoever can read such a file can write the run's directory as well, and so owns the run anyway.
"""

import hmac
import os
import secrets
from pathlib import Path

KEY_BYTES = 32
SIGNATURE_BYTES = 32  # of SHA-256
RENDEZVOUS_KEY = ".rendezvous.key"  # in the attempt's folder: signs what lies in its store


def new_key() -> str:
    """Make a random key, as text."""
    return secrets.token_hex(KEY_BYTES)


def write_private(path: Path, text: str) -> None:
    """Create a file that only this user can read. Raises FileExistsError where something lies there, a link included."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)


def sign(key: str, purpose: str, *parts: bytes) -> bytes:
    """Return the HMAC of some bytes under a key. A signature for one purpose proves nothing for another."""
    signature = hmac.new(key.encode(), purpose.encode(), "sha256")
    for part in parts:
        signature.update(len(part).to_bytes(8, "big") + part)  # else two lists of parts could read the same
    return signature.digest()


def is_signature(key: str, signature: bytes, purpose: str, *parts: bytes) -> bool:
    """Return whether `signature` is that of `parts`, in a time that reveals nothing about the right signature."""
    return hmac.compare_digest(signature, sign(key, purpose, *parts))

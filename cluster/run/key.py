"""Secret keys of an attempt, in files that only the run's user can read, and signatures with them.

Anyone who can read these files can also write to the run directory, and thus controls the run in any case.
"""

import hmac
import os
import secrets
from pathlib import Path

KEY_BYTES = 32
SIGNATURE_BYTES = 32  # HMAC-SHA256


def new_key() -> str:
    """Return a random key in hexadecimal."""
    return secrets.token_hex(KEY_BYTES)


def write_private(path: Path, text: str) -> None:
    """Create a file that only this user can read. Raises FileExistsError, also for a link."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)


def sign(key: str, purpose: str, *parts: bytes) -> bytes:
    """Return the HMAC of `parts`. The `purpose` is signed too, so a signature is not valid for another purpose."""
    signature = hmac.new(key.encode(), purpose.encode(), "sha256")
    for part in parts:
        signature.update(len(part).to_bytes(8, "big") + part)  # with lengths, so that different lists of parts differ
    return signature.digest()


def is_signature(key: str, signature: bytes, purpose: str, *parts: bytes) -> bool:
    """Return True if `signature` is valid for `parts`; compares in constant time."""
    return hmac.compare_digest(signature, sign(key, purpose, *parts))

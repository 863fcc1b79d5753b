"""Handshake with which an agent and its coordinator authenticate to each other: both have a key, and neither sends it.

The coordinator sends a random number that is used once, and the agent signs it with its hello, so that a recorded hello cannot be
replayed. The welcome is signed in the same way, so that an agent executes commands of the real coordinator only.
"""

import json
import secrets

from ropewalk.cluster.membership.protocol import Message
from ropewalk.cluster.run.key import is_signature, sign

NONCE_BYTES = 16


def new_nonce() -> str:
    """Return a random number that is used once."""
    return secrets.token_hex(NONCE_BYTES)


def sign_hello(key: str, challenge: str, nonce: str, hello: Message) -> Message:
    """Return an agent's hello as the answer to the challenge, with its own challenge."""
    return {**hello, "nonce": nonce, "proof": sign(key, "hello", *_parts(challenge, nonce, hello)).hex()}


def proves_key(key: str, challenge: str, message: Message) -> bool:
    """Return True if a hello answers the challenge and its sender has the key."""
    hello = {name: value for name, value in message.items() if name not in ("nonce", "proof")}
    proof = bytes.fromhex(message["proof"])
    return is_signature(key, proof, "hello", *_parts(challenge, str(message["nonce"]), hello))


def sign_welcome(key: str, nonce: str, welcome: Message) -> Message:
    """Return the coordinator's welcome to an agent that it admits."""
    return {**welcome, "proof": sign(key, "welcome", nonce.encode(), _text(welcome)).hex()}


def is_welcome(key: str, nonce: str, message: Message) -> bool:
    """Return True if a message is a welcome whose sender has the key. Raises ValueError if its proof is malformed."""
    if message["say"] != "welcome":
        return False
    welcome = {name: value for name, value in message.items() if name != "proof"}
    return is_signature(key, bytes.fromhex(str(message.get("proof"))), "welcome", nonce.encode(), _text(welcome))


def _parts(challenge: str, nonce: str, hello: Message) -> tuple[bytes, bytes, bytes]:
    return challenge.encode(), nonce.encode(), _text(hello)


def _text(message: Message) -> bytes:
    return json.dumps(message, sort_keys=True).encode()

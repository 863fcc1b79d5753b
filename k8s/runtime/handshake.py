"""Handshake with which two pods of a run authenticate to each other: both have the term's key, and neither sends it.

The coordinator sends a random number that is used once, and the pod signs it with its hello, so that a recorded hello cannot be
replayed. The welcome is signed in the same way, so that a pod executes commands of the real coordinator only.
"""

import json
import secrets

from ropewalk.cluster.run.key import is_signature, sign
from ropewalk.k8s.runtime.pod_status import Pod
from ropewalk.k8s.runtime.protocol import Message

NONCE_BYTES = 16


def new_nonce() -> str:
    """Return a random number that is used once."""
    return secrets.token_hex(NONCE_BYTES)


def hello(key: str, challenge: str, nonce: str, pod: Pod) -> Message:
    """Return a pod's answer to the challenge, which contains its own challenge."""
    proof = sign(key, "hello", challenge.encode(), nonce.encode(), _text(pod)).hex()
    return {"say": "hello", "pod": vars(pod), "nonce": nonce, "proof": proof}


def proves_key(key: str, challenge: str, message: Message, pod: Pod) -> bool:
    """Return True if a hello answers the challenge and its sender has the key."""
    proof = bytes.fromhex(message["proof"])
    return is_signature(key, proof, "hello", challenge.encode(), str(message["nonce"]).encode(), _text(pod))


def welcome(key: str, nonce: str) -> Message:
    """Return the coordinator's answer to a pod that it admits."""
    return {"say": "welcome", "proof": sign(key, "welcome", nonce.encode()).hex()}


def is_welcome(key: str, nonce: str, message: Message) -> bool:
    """Return True if a message is a welcome whose sender has the key. Raises ValueError if its proof is malformed."""
    proof = str(message.get("proof"))
    return message["say"] == "welcome" and is_signature(key, bytes.fromhex(proof), "welcome", nonce.encode())


def ray_token(key: str) -> str:
    """Return the token of the run's Ray cluster, which every pod derives from the key."""
    return sign(key, "ray").hex()


def _text(pod: Pod) -> bytes:
    return json.dumps(vars(pod), sort_keys=True).encode()

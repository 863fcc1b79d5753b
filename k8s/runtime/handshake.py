"""How two pods of a run prove to each other that they belong to it: both know the term's key, and neither sends it.

The coordinator sends a number that it never sends again, and the pod signs it with its hello: a hello that was overheard
proves nothing later. The welcome is signed likewise, so that a pod obeys nobody else.
"""

import json
import secrets

from ropewalk.cluster.run.key import sign, signed_by
from ropewalk.k8s.runtime.pod_status import Pod
from ropewalk.k8s.runtime.protocol import Message

NONCE_BYTES = 16


def new_nonce() -> str:
    """A random number, which is used once."""
    return secrets.token_hex(NONCE_BYTES)


def hello(key: str, challenge: str, nonce: str, pod: Pod) -> Message:
    """A pod's answer to the challenge, with a challenge of its own."""
    proof = sign(key, "hello", challenge.encode(), nonce.encode(), _text(pod)).hex()
    return {"say": "hello", "pod": vars(pod), "nonce": nonce, "proof": proof}


def proves(key: str, challenge: str, said: Message, pod: Pod) -> bool:
    """Whether a hello answers the challenge, and its sender knows the key."""
    proof = bytes.fromhex(said["proof"])
    return signed_by(key, proof, "hello", challenge.encode(), str(said["nonce"]).encode(), _text(pod))


def welcome(key: str, nonce: str) -> Message:
    """The coordinator's answer to a pod that it lets in."""
    return {"say": "welcome", "proof": sign(key, "welcome", nonce.encode()).hex()}


def is_welcome(key: str, nonce: str, said: Message) -> bool:
    """Whether a message is a welcome whose sender knows the key. Raises ValueError if it is no message of that kind."""
    return said["say"] == "welcome" and signed_by(key, bytes.fromhex(str(said.get("proof"))), "welcome", nonce.encode())


def ray_token(key: str) -> str:
    """The token of the run's Ray, which every pod derives from the key."""
    return sign(key, "ray").hex()


def _text(pod: Pod) -> bytes:
    return json.dumps(vars(pod), sort_keys=True).encode()

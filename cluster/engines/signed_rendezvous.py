"""torch's c10d rendezvous with a state that is signed with the attempt's key.

torch unpickles the state in the store, and anyone who can reach the store's port can write to it.
"""

from datetime import timedelta
from pathlib import Path

from torch.distributed.elastic.rendezvous import RendezvousInfo, RendezvousParameters, RendezvousStateError
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import create_backend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
    DynamicRendezvousHandler,
    RendezvousBackend,
    RendezvousTimeout,
    Token,
)

from ropewalk.cluster.fresh_reads import read_afresh
from ropewalk.cluster.run.key import SIGNATURE_BYTES, is_signature, sign
from ropewalk.cluster.run.names import RENDEZVOUS_KEY

TIMEOUTS = ("join", "last_call", "close", "heartbeat")
ADDRESS_SIGNATURE = "ADDRESS_SIGNATURE"  # key beside torch's MASTER_ADDR and MASTER_PORT, in the store of one formation


class SignedBackend(RendezvousBackend):
    """A rendezvous backend that signs the state that it writes, and rejects a state without a valid signature."""

    def __init__(self, inner: RendezvousBackend, key: str, run_id: str) -> None:
        self._inner, self._key, self._run_id = inner, key, run_id.encode()

    @property
    def name(self) -> str:
        return self._inner.name

    def get_state(self) -> tuple[bytes, Token] | None:
        """Return the state and its fencing token, or None if there is none yet. Raises RendezvousStateError if not signed."""
        signed = self._inner.get_state()
        return None if signed is None else (self._verify(signed[0]), signed[1])

    def set_state(self, state: bytes, token: Token | None = None) -> tuple[bytes, Token, bool] | None:
        """Replace the state if `token` is still current, and return the stored one. Raises RendezvousStateError if not signed."""
        stored = self._inner.set_state(state + self._signature(state), token)
        return None if stored is None else (self._verify(stored[0]), stored[1], stored[2])

    def _signature(self, state: bytes) -> bytes:
        return sign(self._key, "rendezvous", self._run_id, state)

    def _verify(self, signed: bytes) -> bytes:
        state, signature = signed[:-SIGNATURE_BYTES], signed[-SIGNATURE_BYTES:]
        if not is_signature(self._key, signature, "rendezvous", self._run_id, state):
            raise RendezvousStateError(
                "the rendezvous store holds a state that no agent of this attempt has signed: "
                "another program writes to it; resume the run on a network where its port is not open to others"
            )
        return state


class SignedHandler(DynamicRendezvousHandler):
    """torch's handler, extended to sign the address of rank 0, so that nobody can direct the ranks to another machine.

    A replayed address of an earlier group of the attempt is accepted; it also belongs to a node of the attempt.
    """

    def sign_with(self, key: str, run_id: str) -> None:
        """Set the attempt's key for signing addresses."""
        self._key, self._run_id = key, run_id.encode()

    def store_prefix(self, group: int) -> str:
        """Return the prefix of the keys with which the ranks of a group meet, known only to agents and ranks of the attempt."""
        return sign(self._key, "store", self._run_id, str(group).encode()).hex()

    def next_rendezvous(self) -> RendezvousInfo:
        """Join a group. Raises RendezvousStateError if the address of rank 0 is not signed with the attempt's key."""
        info = super().next_rendezvous()
        address = info.bootstrap_store_info
        assert address is not None
        parts = (self._run_id, address.master_addr.encode(), str(address.master_port).encode())
        if info.rank == 0:
            info.store.set(ADDRESS_SIGNATURE, sign(self._key, "address", *parts).hex())
        elif not is_signature(self._key, bytes.fromhex(info.store.get(ADDRESS_SIGNATURE).decode()), "address", *parts):
            raise RendezvousStateError(f"the address {address.master_addr} of rank 0 is not signed by an agent of this attempt")
        return info


def signed_handler(parameters: RendezvousParameters, attempt_folder: Path) -> SignedHandler:
    """Make a rendezvous handler with the key of the attempt in `attempt_folder`."""
    key = read_afresh(attempt_folder / RENDEZVOUS_KEY).decode()
    assert key, f"{attempt_folder}: the key is empty"
    backend, store = create_backend(parameters)
    numbers = {name: int(value) for name, value in parameters.config.items()}
    seconds = {name: timedelta(seconds=numbers[f"{name}_timeout"]) for name in TIMEOUTS}
    handler: SignedHandler = SignedHandler.from_backend(
        parameters.run_id,
        store,
        SignedBackend(backend, key, parameters.run_id),
        parameters.min_nodes,
        parameters.max_nodes,
        parameters.local_addr,
        RendezvousTimeout(**seconds),
        keep_alive_interval=numbers["keep_alive_interval"],
        keep_alive_max_attempt=numbers["keep_alive_max_attempt"],
    )
    handler.sign_with(key, parameters.run_id)
    return handler

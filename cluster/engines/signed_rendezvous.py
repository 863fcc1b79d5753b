"""torch's c10d rendezvous whose state is signed with the attempt's key.

torch unpickles the state that it finds in the store, and whoever reaches the store's port can write there.
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
from ropewalk.cluster.run.key import RENDEZVOUS_KEY, SIGNATURE_BYTES, sign, signed_by

TIMEOUTS = ("join", "last_call", "close", "heartbeat")
PLACE_SIGNATURE = "PLACE_SIGNATURE"  # beside torch's own MASTER_ADDR and MASTER_PORT, in the store of one formation


class SignedBackend(RendezvousBackend):
    """A rendezvous backend that adds a signature to what it writes, and hands on only what is signed."""

    def __init__(self, inner: RendezvousBackend, key: str, run_id: str) -> None:
        self._inner, self._key, self._run_id = inner, key, run_id.encode()

    @property
    def name(self) -> str:
        """The name of the backend that holds the state."""
        return self._inner.name

    def get_state(self) -> tuple[bytes, Token] | None:
        """The state and its fencing token, None if there is none yet. Raises RendezvousStateError if it is not signed."""
        found = self._inner.get_state()
        return None if found is None else (self._verified(found[0]), found[1])

    def set_state(self, state: bytes, token: Token | None = None) -> tuple[bytes, Token, bool] | None:
        """Replace the state if it is still the one of `token`. Raises RendezvousStateError if what is there is not signed."""
        found = self._inner.set_state(state + self._signature(state), token)
        return None if found is None else (self._verified(found[0]), found[1], found[2])

    def _signature(self, state: bytes) -> bytes:
        return sign(self._key, "rendezvous", self._run_id, state)

    def _verified(self, signed: bytes) -> bytes:
        state, signature = signed[:-SIGNATURE_BYTES], signed[-SIGNATURE_BYTES:]
        if not signed_by(self._key, signature, "rendezvous", self._run_id, state):
            raise RendezvousStateError(
                "the rendezvous store holds a state that no agent of this attempt has signed: "
                "somebody else writes to it; resume the run where its port is not open to others"
            )
        return state


class SignedHandler(DynamicRendezvousHandler):
    """torch's handler that also signs the address at which the ranks meet: whoever sent them elsewhere would be their peer.

    An address that an earlier group of the attempt signed may be replayed; it names a node of the attempt all the same.
    """

    def sign_with(self, key: str, run_id: str) -> None:
        """Set the key of the attempt, by which addresses are signed."""
        self._key, self._run_id = key, run_id.encode()

    def next_rendezvous(self) -> RendezvousInfo:
        """Join a group. Raises RendezvousStateError if the address at which its ranks meet is not signed by this attempt."""
        info = super().next_rendezvous()
        place = info.bootstrap_store_info
        assert place is not None
        words = (self._run_id, place.master_addr.encode(), str(place.master_port).encode())
        if info.rank == 0:
            info.store.set(PLACE_SIGNATURE, sign(self._key, "place", *words).hex())
        elif not signed_by(self._key, bytes.fromhex(info.store.get(PLACE_SIGNATURE).decode()), "place", *words):
            raise RendezvousStateError(f"the address {place.master_addr} of rank 0 is not signed by an agent of this attempt")
        return info


def signed_handler(parameters: RendezvousParameters, attempt_folder: Path) -> SignedHandler:
    """Make a rendezvous handler at the store that the parameters name, with the key of the attempt in that folder."""
    key = read_afresh(attempt_folder / RENDEZVOUS_KEY).decode()
    assert key, f"{attempt_folder}: an empty key would sign nothing"
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

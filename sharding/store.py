"""The store in which the ranks of a group meet; rank 0 serves it."""

import errno
import os
from datetime import timedelta

from torch.distributed import PrefixStore, Store, TCPStore

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.process.ports import await_listener, listen_on
from ropewalk.cluster.run.context import STORE_PREFIX_VARIABLE


def refuse_stale_store() -> None:
    """Raise ConfigError if torchrun restarted this group with the previous group's store.

    That store still holds the addresses of dead ranks (torch 2.13), for which the group would wait. Our own agent gives each
    group a new store.
    """
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if shared and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0:
        raise ConfigError(
            "torchrun restarted this group with the store of the previous one, which would hang; "
            "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun, or start the run with `ropewalk run`"
        )


def group_store(timeout: timedelta) -> Store | None:
    """Open the store in which the ranks meet, or return None if torchrun serves it.

    Rank 0 serves it at MASTER_ADDR only, where torch would listen on all addresses, unless that is not an address of its
    machine. Keys have the secret prefix that the group server gave to the ranks: they hold the addresses at which ranks connect
    to each other, and torch unpickles what peers send. Addresses can thus not be planted before the ranks write their own; the
    store lists its keys to everybody who reaches its port, so that port must still be closed to strangers.
    """
    host, port, served = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT"), os.environ.get("RANK") == "0"
    if not host or not port or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return None
    listener = None
    if not served:  # torch's client would sleep for 0.2 to 0.7 s if it came first
        await_listener(host, int(port), timeout.total_seconds())
    else:
        try:
            listener = listen_on(host, int(port)).detach()
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
    store = TCPStore(host, int(port), None, served, timeout, wait_for_workers=False, master_listen_fd=listener)
    return _with_prefix(store)


def connect(timeout: timedelta) -> Store:
    """Open another connection to the store, for messages outside of collectives."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return _with_prefix(TCPStore(host, port, None, False, timeout, wait_for_workers=False))


def _with_prefix(store: Store) -> Store:
    return PrefixStore(os.environ.get(STORE_PREFIX_VARIABLE, "default_pg"), store)

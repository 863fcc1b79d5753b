"""The rendezvous store, in a process of its own beside the supervisor.

An agent that hosted the store would take the whole run with it when its node dies.
The store listens at the run's address alone, and ends with its parent.

Usage: python -m cluster.engines.store --host HOST --port PORT
"""

import argparse
import os
import signal
import time
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from cluster.process.ports import listen_on
from cluster.process.signals import STOP_SIGNALS


def main() -> None:
    """Serve until the parent process is gone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # the agents still need it to leave in order
    parent = os.getppid()
    listener = listen_on(arguments.host, arguments.port)
    store = TCPStore(
        arguments.host,
        arguments.port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=60),
        master_listen_fd=listener.detach(),  # torch itself would listen at all addresses
    )
    assert store.port == arguments.port
    while os.getppid() == parent:
        time.sleep(0.5)


if __name__ == "__main__":
    main()

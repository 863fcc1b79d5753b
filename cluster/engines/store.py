"""The process of the rendezvous store, next to the supervisor.

If an agent hosted the store, the whole run would end when that agent's node dies.
The store listens only at the run's address, and exits with its parent.

Usage: python -m ropewalk.cluster.engines.store --host HOST --port PORT
"""

import argparse
import importlib.util
import os
import signal
import sys
import time
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.process.ports import listen_on
from ropewalk.cluster.process.signals import STOP_SIGNALS
from ropewalk.cluster.process.sockets import raise_open_files

OPEN_FILES = 1 << 16  # connections of agents


def main() -> None:
    """Serve until the parent process is gone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--whole-torch", action="store_true", help="import all of torch, where its store does not load alone")
    arguments = parser.parse_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # the agents need the store until they have exited
    raise_open_files(OPEN_FILES)
    parent = os.getppid()
    make = store_class(whole_torch=arguments.whole_torch)
    listener = listen_on(arguments.host, arguments.port)
    store = make(
        arguments.host,
        arguments.port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=60),
        master_listen_fd=listener.detach(),  # torch would listen at all addresses
    )
    assert store.port == arguments.port
    while os.getppid() == parent:
        time.sleep(0.5)


def store_class(*, whole_torch: bool) -> Any:
    """torch's TCPStore.

    A process that has not imported torch loads its compiled part alone, in a fifth of the time; where that fails, this program
    is started anew, with all of torch.
    """
    if not whole_torch and "torch" not in sys.modules:
        try:
            return _load_alone()
        except Exception as error:  # another torch than the one that this was written for
            sys.stderr.write(f"torch's store did not load alone ({type(error).__name__}: {error}); importing all of torch\n")
            sys.stderr.flush()
            os.execv(sys.executable, module_command("ropewalk.cluster.engines.store", *sys.argv[1:], "--whole-torch"))  # noqa: S606
    return import_module("torch.distributed").TCPStore


def _load_alone() -> Any:
    """Load torch._C below an empty module in torch's place, and of it what torch.distributed would load."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    for name, folder in (("torch", Path(spec.origin).parent), ("torch.distributed", Path(spec.origin).parent / "distributed")):
        sys.modules[name] = empty = ModuleType(name)
        empty.__path__ = [str(folder)]
    compiled: Any = import_module("torch._C")
    compiled._c10d_init()
    return compiled._distributed_c10d.TCPStore


if __name__ == "__main__":
    main()

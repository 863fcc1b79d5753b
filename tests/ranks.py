"""Functions that each run on several ranks, as processes of this machine."""

from collections.abc import Callable
from typing import Any

from torch.distributed import TCPStore

from tests.fork_server import SERVER


def run_ranks(main: Callable[..., object], ranks: int, *arguments: Any) -> TCPStore:
    """Run `main(rank, ranks, port of the store, *arguments)` in a process each, all of which succeed, and return the store."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = [SERVER.Process(target=main, args=(rank, ranks, store.port, *arguments)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    codes = [process.exitcode for process in processes]
    assert codes == [0] * ranks, codes
    return store

"""One rank of test_exchange.py: values between ranks, errors of rank 0, and the keys of the store."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import psutil
import pytest
import torch.distributed as dist

from ropewalk.cluster.errors import CorruptShardError, GateError, RopewalkError, StopRequested
from ropewalk.cluster.run.context import STORE_PREFIX_VARIABLE
from ropewalk.jobs.training.loop.weights.on_main import on_main
from ropewalk.sharding.group import process_group

PREFIX = "ab" * 32


class Pair(NamedTuple):
    name: str
    content: bytes


def refuse(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("a peer's pickle would be loaded")


def rank_main(rank: int, size: int, port: int, folder: Path) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(LOCAL_RANK=str(rank), OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo", ROPEWALK_NODE_GPUS="0")
    os.environ[STORE_PREFIX_VARIABLE] = PREFIX
    dist.distributed_c10d._tensor_to_object = refuse
    with process_group() as group:
        main = group.is_main
        host_store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=30))
        peers = [peer.raddr.port for peer in psutil.Process().net_connections("tcp") if peer.raddr]
        assert main or set(peers) == {port}, "no rank is connected to another before they exchange something"
        host_store.set(f"looked/{rank}", "")
        host_store.wait([f"looked/{each}" for each in range(size)])
        assert group.all_gather_object("x" * 1000 * rank) == ["x" * 1000 * each for each in range(size)]
        assert group.all_gather_object({rank: [rank, 0.1]}, dict[int, list[float]]) == [
            {each: [each, 0.1]} for each in range(size)
        ]
        assert group.gather_object("x" * 10 * rank) == (["x" * 10 * each for each in range(size)] if main else [])
        assert group.broadcast_object({"a": [1, None, float("inf")]} if main else None) == {"a": [1, None, float("inf")]}
        pair: Pair = group.broadcast_object(Pair("n", b"\x00\xff" * 99) if main else None, Pair)
        assert pair == Pair("n", b"\x00\xff" * 99)
        assert isinstance(pair, Pair)
        errors = [CorruptShardError("part 3"), GateError("too low", {}), StopRequested("step 3"), of_rank_0_alone("odd")]
        for error in errors:
            kind = type(error) if main or not isinstance(error, OSError) else RopewalkError
            with pytest.raises((RopewalkError, StopRequested)) as raised:
                on_main(group, lambda error=error: throw(error))  # type: ignore[misc]
            assert (raised.type, str(raised.value)) == (kind, str(error))
        if main:
            (folder / "keys").write_text("\n".join(host_store.list_keys()))
        group.barrier()


def of_rank_0_alone(text: str) -> RopewalkError:
    """An error of a class that only rank 0 has defined."""
    return type("Odd", (RopewalkError, OSError), {})(text) if os.environ["RANK"] == "0" else RopewalkError(text)


def throw(error: Exception) -> NoReturn:
    raise error

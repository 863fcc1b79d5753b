"""The group of ranks: what it refuses to form, and what each rank computes on."""

import os
import socket
import threading
from contextlib import nullcontext
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist

from ropewalk.cluster.errors import EXIT_LOST_PEER, BackendError, ConfigError, RopewalkError, StopRequested
from ropewalk.cluster.process.ports import free_port
from ropewalk.sharding import group as formed
from ropewalk.sharding import store as meeting
from ropewalk.sharding.config import ParallelConfig
from ropewalk.sharding.group import process_group, rank_device
from tests.fakes.gpus import machine_with
from tests.patience import HANG_SECONDS


def test_a_store_of_a_dead_group_is_refused_rather_than_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(ConfigError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"), process_group():
        pass


def rank_on(patch: pytest.MonkeyPatch, count: int, **variables: str) -> None:
    """A rank of a node where torch sees so many GPUs, and whose environment says `variables`."""
    for name in (
        *("ROPEWALK_NODE_GPUS", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES"),
        "TORCH_GLOO_LAZY_INIT",
    ):
        patch.setenv(name, "")  # so that it is put back, whatever the rank makes of it
        patch.delenv(name)
    for name, value in variables.items():
        patch.setenv(name, value)
    patch.setattr(torch.cuda, "is_available", lambda: count > 0)
    patch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("count", "variables", "device"),
    [
        (0, {}, "cpu"),
        (8, {"ROPEWALK_NODE_GPUS": "0", "LOCAL_RANK": "0"}, "cpu"),  # Slurm shows them all where it does not hide them
        (1, {"ROPEWALK_NODE_GPUS": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, "cuda:0"),
        (4, {"ROPEWALK_NODE_GPUS": "4", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}, "cuda:3"),
        (4, {"ROPEWALK_NODE_GPUS": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, "cuda:2"),  # two GPUs each
        (2, {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, "cuda:1"),  # torchrun, which says nothing of GPUs
        (8, {"LOCAL_RANK": "5"}, "cuda:5"),
    ],
)
def test_a_rank_computes_on_a_gpu_of_its_own_if_its_node_was_given_any(
    monkeypatch: pytest.MonkeyPatch, count: int, variables: dict[str, str], device: str
) -> None:
    rank_on(monkeypatch, count, **variables)
    assert rank_device() == torch.device(device)


@pytest.mark.parametrize(
    ("count", "variables", "kind", "message"),
    [
        (0, {"ROPEWALK_NODE_GPUS": "2"}, BackendError, "allocated 2 GPUs and torch .* finds 0"),
        (1, {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}, ConfigError, "2 ranks on this node and 1 GPUs"),
        (1, {"ROPEWALK_NODE_GPUS": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, ConfigError, "2 ranks"),
    ],
)
def test_no_rank_shares_a_gpu(
    monkeypatch: pytest.MonkeyPatch, count: int, variables: dict[str, str], kind: type[RopewalkError], message: str
) -> None:
    rank_on(monkeypatch, count, **variables)
    with pytest.raises(kind, match=message):
        rank_device()


def test_nccl_is_told_its_device_and_the_cpu_has_gloo_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **more: calls.append((backend, more["device_id"])))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(formed, "init_device_mesh", lambda kind, *_, **__: kind)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(("set", device)))
    rank_on(monkeypatch, 2, ROPEWALK_NODE_GPUS="2", LOCAL_RANK="1", LOCAL_WORLD_SIZE="2", WORLD_SIZE="2")
    with process_group() as group:
        assert (group.mesh, group.device) == ("cuda", torch.device("cuda:1"))
    rank_on(monkeypatch, 2, ROPEWALK_NODE_GPUS="0", LOCAL_RANK="1", LOCAL_WORLD_SIZE="2", WORLD_SIZE="2", OMP_NUM_THREADS="1")
    with process_group() as group:
        assert (group.mesh, group.device) == ("cpu", torch.device("cpu"))
    device = torch.device("cuda:1")
    assert calls == [("set", device), ("cpu:gloo,cuda:nccl", device), ("gloo", None)]


def test_a_rank_that_cannot_connect_ends(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """NCCL waits for its peers without a limit before it has connected, such as behind a closed port."""
    ended = threading.Event()
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        ended.set()

    def connect(*_: Any, **__: Any) -> None:
        ended.wait(HANG_SECONDS)
        raise ConnectionError("the process would be gone by now")

    monkeypatch.setattr(formed, "CONNECT_SECONDS", 0.1)
    monkeypatch.setattr(dist, "init_process_group", connect)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(os, "_exit", leave)
    rank_on(monkeypatch, 2, ROPEWALK_NODE_GPUS="2", LOCAL_RANK="1", LOCAL_WORLD_SIZE="2", WORLD_SIZE="2")
    with pytest.raises(ConnectionError), process_group(ParallelConfig(timeout_minutes=0.001)):
        pass
    assert codes == [EXIT_LOST_PEER]
    assert "no connection to the other ranks within 0:00:00" in caplog.text


@pytest.mark.parametrize(
    ("gpus", "variables", "expected"),
    [
        (8, {"ROPEWALK_NODE_GPUS": "0"}, 8),
        (8, {"ROPEWALK_NODE_GPUS": "0", "ROPEWALK_MACHINE_DEVICES": "all", "CUDA_VISIBLE_DEVICES": ""}, 8),  # a virtual node
        (8, {"ROPEWALK_NODE_GPUS": "0", "ROPEWALK_MACHINE_DEVICES": "2,3", "CUDA_VISIBLE_DEVICES": ""}, 2),
        (8, {"ROPEWALK_NODE_GPUS": "0", "CUDA_VISIBLE_DEVICES": ""}, 0),  # the user wants none
        (8, {"ROPEWALK_NODE_GPUS": "0", "RANK": "1"}, 0),
        (8, {}, 0),  # torchrun: nobody asked
        (None, {"ROPEWALK_NODE_GPUS": "0"}, 0),
    ],
)
def test_gpus_that_a_run_did_not_ask_for_are_named_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, gpus: int | None, variables: dict[str, str], expected: int
) -> None:
    """Else the first job file of a reader trains on the CPU of a machine with eight GPUs, and does not say so."""
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(formed, "init_device_mesh", lambda *_, **__: None)
    monkeypatch.delenv("RANK", raising=False)
    rank_on(monkeypatch, 0, OMP_NUM_THREADS="1")
    machine_with(gpus, monkeypatch, **variables)
    with process_group():
        pass
    text = f"this machine has {expected} GPU(s) and resources.gpus is 0: computing on the CPU; set resources.gpus to use them"
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [text] * bool(expected)


@pytest.mark.parametrize(
    ("gpus", "end", "destroyed"),
    [
        (2, None, True),
        (2, StopRequested("step 3"), True),
        (2, ConfigError("one rank's alone"), False),
        (2, torch.OutOfMemoryError("CUDA out of memory"), False),
        (0, ConfigError("gloo waits for nobody"), True),
    ],
)
def test_an_error_of_one_rank_does_not_wait_for_the_others_in_nccl(
    monkeypatch: pytest.MonkeyPatch, gpus: int, end: Exception | None, destroyed: bool
) -> None:
    """They sit in a collective that it will never join: destroying the group would hide the error for minutes."""
    calls: list[str] = []
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: calls.append("destroyed"))
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(formed, "init_device_mesh", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    ranks = {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    rank_on(monkeypatch, gpus, ROPEWALK_NODE_GPUS=str(gpus), **ranks)
    with pytest.raises(type(end)) if end else nullcontext(), process_group():
        if end:
            raise end
    assert bool(calls) == destroyed


def a_group_of_one(patch: pytest.MonkeyPatch, address: str, port: int) -> None:
    variables = {"RANK": "0", "MASTER_ADDR": address, "MASTER_PORT": str(port), "ROPEWALK_NODE_GPUS": "0", "OMP_NUM_THREADS": "1"}
    rank_on(patch, 0, WORLD_SIZE="1", **variables)


def test_the_ranks_meet_at_the_address_of_the_first_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever can write into the store can make the ranks connect to a process of their own."""
    port = free_port("127.0.1.1")
    a_group_of_one(monkeypatch, "127.0.1.1", port)
    with process_group() as group:
        assert group.all_gather_object("here") == ["here"]
        sockets = psutil.Process().net_connections("tcp")
    assert [each.laddr for each in sockets if each.status == psutil.CONN_LISTEN and each.laddr.port == port] == [
        ("127.0.1.1", port)
    ]


def test_a_port_that_another_group_listens_at_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.1.1", 0), reuse_port=True) as other:
        a_group_of_one(monkeypatch, "127.0.1.1", other.getsockname()[1])
        with pytest.raises(OSError, match=os.strerror(98)), process_group():
            pass


def test_an_address_that_only_others_know_is_served_at_all_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as that of a service in front of rank 0."""
    port = free_port("127.0.0.1")
    a_group_of_one(monkeypatch, "192.0.2.1", port)
    opened: list[Any] = []

    def open_store(host: str, number: int, *_: Any, master_listen_fd: int | None, **more: Any) -> dist.Store:
        opened.append((host, number, master_listen_fd))
        return dist.HashStore()

    monkeypatch.setattr(meeting, "TCPStore", open_store)
    monkeypatch.setattr(dist, "init_process_group", lambda _, **more: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    with pytest.raises(ValueError, match="process group"), process_group():
        pass
    assert opened == [("192.0.2.1", port, None)]

"""Whoever reaches the rendezvous store's port, or is another user of its machine, runs nothing in an agent."""

import base64
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStateError,
    RendezvousStoreInfo,
)
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler

from ropewalk.cluster.engines.rendezvous import RENDEZVOUS
from ropewalk.cluster.engines.signed_rendezvous import SignedHandler, signed_handler
from ropewalk.cluster.process.kill import end, family
from ropewalk.cluster.process.ports import ReservedPort
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.key import new_key, write_private
from ropewalk.cluster.run.names import RENDEZVOUS_KEY
from ropewalk.cluster.supervise.allocation import AgentSpec, StoreSpec
from tests.cluster.conftest import ROOT
from tests.patience import Patience, until
from tests.processes import words_of

STORE_ADDRESS, OTHER_ADDRESS = "127.0.1.1", "127.0.0.1"
OTHER_USER = 65534
BIND = """
import os, socket, sys
os.setuid(int(sys.argv[1]))
wanted = socket.socket()
wanted.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
wanted.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
wanted.bind((sys.argv[2], int(sys.argv[3])))
"""


class Planted:
    """An attacker's value in the store: unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


def answers(address: str, port: int) -> bool:
    """Return True if a process listens at the address."""
    try:
        socket.create_connection((address, port), timeout=1).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a store that runs."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    reserved = ReservedPort()
    port = reserved.take(STORE_ADDRESS)
    process = subprocess.Popen(StoreSpec(attempt=1, host=STORE_ADDRESS, port=str(port)).command())
    until(lambda: answers(STORE_ADDRESS, port), Patience.START)
    yield port
    process.kill()
    process.wait()
    reserved.release()


def test_the_store_listens_at_the_run_s_address_alone(store: int) -> None:
    (process,) = (each for each in psutil.Process().children() if str(store) in words_of(each))
    listening = {each.laddr.ip for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN}
    assert listening == {STORE_ADDRESS}, "other programs may have the same port at other addresses"


def test_what_no_agent_has_signed_is_never_unpickled(store: int, tmp_path: Path) -> None:
    record = {"config": {}, "entry": "tests.fakes.toy:count", "engine": "ranks", "sidecars": [], "resources": {}}
    run = RunDir.create("toy", record, tmp_path)
    run.make_folders(run.begin_attempt())
    write_private(run.attempt_dir(1) / RENDEZVOUS_KEY, new_key())
    attacker = TCPStore(STORE_ADDRESS, store, is_master=False, timeout=timedelta(seconds=30))
    state = base64.b64encode(pickle.dumps(Planted(tmp_path / "owned"))).decode()
    attacker.set(f"torch.rendezvous.{run.id}.1", state)
    node_keys = {"address": STORE_ADDRESS, "rendezvous": f"{STORE_ADDRESS}:{store}"}
    log = tmp_path / "agent.log"
    with log.open("wb") as stream:
        command = AgentSpec(run_path=str(run.path), attempt=1, node=0, nodes="1", **node_keys).command()
        agent = subprocess.Popen(command, stdout=stream, stderr=stream)
    try:
        until(lambda: agent.poll() is not None, Patience.RUN, log.read_text)
    finally:
        end(family(agent.pid))
        agent.wait()
    assert not (tmp_path / "owned").exists()
    assert "no agent of this attempt has signed" in log.read_text()


def test_ranks_meet_only_where_an_agent_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sent them elsewhere would be their peer, and ranks unpickle what peers send."""
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")  # as `run_ranks` has it
    write_private(tmp_path / RENDEZVOUS_KEY, new_key())
    server = TCPStore(OTHER_ADDRESS, 0, is_master=True, wait_for_workers=False)

    def handler(address: str) -> SignedHandler:
        parameters = RendezvousParameters("c10d", f"{OTHER_ADDRESS}:{server.port}", "run.1", 2, 2, address, **RENDEZVOUS)
        return signed_handler(parameters, tmp_path)

    with ThreadPoolExecutor(2) as pool:
        nodes = [handler(f"127.0.1.{node}") for node in (1, 2)]
        places = [info.bootstrap_store_info for info in pool.map(SignedHandler.next_rendezvous, nodes)]
    assert places[0] == places[1]
    assert places[0] is not None
    server.set("torch.rendezvous.run.1.0/MASTER_ADDR", "10.6.6.6")
    second = next(node for node in nodes if node._this_node.addr != places[0].master_addr)
    monkeypatch.setattr(DynamicRendezvousHandler, "next_rendezvous", _read_again)
    with pytest.raises(RendezvousStateError, match=r"10\.6\.6\.6 of rank 0 is not signed by an agent of this attempt"):
        second.next_rendezvous()
    for node in nodes:
        node._stop_heartbeats()


def _read_again(handler: DynamicRendezvousHandler) -> RendezvousInfo:
    """Rendezvous that any node but the first would now read in the store."""
    store = handler._get_store()
    return RendezvousInfo(store, 1, 2, RendezvousStoreInfo.build(1, store, None))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
@pytest.mark.parametrize("address", [STORE_ADDRESS, "0.0.0.0"])
def test_no_other_user_takes_the_port_before_the_store_listens(address: str) -> None:
    reserved = ReservedPort()
    taken = subprocess.run(
        [sys.executable, "-I", "-S", "-c", BIND, str(OTHER_USER), address, str(reserved.take(STORE_ADDRESS))],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    reserved.release()
    assert "Address already in use" in taken.stderr


def test_the_key_is_the_user_s_alone_and_never_written_over(tmp_path: Path) -> None:
    write_private(tmp_path / "key", new_key())
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        write_private(tmp_path / "link", new_key())

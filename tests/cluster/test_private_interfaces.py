"""Undocumented names of torch, multiprocessing and Ray that the engines use, each at its place.

A release that moves one of them fails here, by name, and not as a group that never forms.
"""

import inspect
import multiprocessing.util
import subprocess
import sys
from typing import Any

import pytest
import ray._private.node
from torch.distributed import HashStore
from torch.distributed.elastic.agent.server.api import SimpleElasticAgent, WorkerGroup
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import MultiprocessContext
from torch.distributed.elastic.rendezvous import RendezvousParameters, dynamic_rendezvous
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler

from ropewalk.cluster.engines.rendezvous import RENDEZVOUS
from tests.cluster.conftest import ROOT


def handler() -> Any:
    parameters = RendezvousParameters("c10d", "127.0.0.1:1", "x", 1, 2, **RENDEZVOUS)
    backend = C10dRendezvousBackend(HashStore(), "x")
    return DynamicRendezvousHandler.from_backend("x", HashStore(), backend, parameters.min_nodes, parameters.max_nodes)


def source(function: Any) -> str:
    return inspect.getsource(function)


def test_a_rendezvous_handler_has_its_state_executor_and_heartbeats() -> None:
    found = handler()
    state = found._state_holder.state
    assert (state.round, state.participants, state.wait_list) == (0, {}, set())
    assert isinstance(found._state_holder._cache_duration, (int, float)), "how old a state it takes, in seconds"
    assert callable(found._stop_heartbeats)
    assert list(inspect.signature(found._op_executor.run).parameters)[:2] == ["state_handler", "deadline"]
    assert dynamic_rendezvous._RendezvousExitOp()
    assert "addr" in {field for node in [found._this_node] for field in vars(type(node)).get("__dataclass_fields__", {})}


@pytest.mark.parametrize("name", ["_delay", "get_method_name"])
def test_the_rendezvous_module_calls_by_name_what_is_replaced_in_it(name: str) -> None:
    assert callable(getattr(dynamic_rendezvous, name))
    assert f"{name}(" in source(DynamicRendezvousHandler) + source(dynamic_rendezvous._DistributedRendezvousOpExecutor)


@pytest.mark.parametrize("name", ["_initialize_workers", "_monitor_workers", "_shutdown"])
def test_torchs_agent_calls_the_methods_that_ours_overrides(name: str) -> None:
    assert f"self.{name}(" in source(SimpleElasticAgent) + source(LocalElasticAgent)


def test_torchs_agent_keeps_its_restarts_and_its_processes_where_ours_looks() -> None:
    assert "self._remaining_restarts" in source(SimpleElasticAgent)
    assert "self._pcontext" in source(LocalElasticAgent)
    assert "self._pc" in source(MultiprocessContext)
    assert {"workers", "store", "group_world_size"} <= set(dir(WorkerGroup))


def test_multiprocessing_and_ray_start_their_servers_by_what_is_replaced() -> None:
    assert list(inspect.signature(multiprocessing.util.spawnv_passfds).parameters) == ["path", "args", "passfds"]
    assert "self.start_api_server(" in source(ray._private.node.Node)
    assert "self.start_monitor(" in source(ray._private.node.Node)


def test_the_store_of_torch_loads_without_torch() -> None:
    lines = [
        "import sys",
        "from datetime import timedelta",
        "from ropewalk.cluster.engines.store import store_class",
        "make = store_class(whole_torch=False)",
        "store = make('127.0.0.1', 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))",
        "store.set('a', 'b')",
        "print(store.get('a'), 'torch.nn' in sys.modules)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["b'b'", "False"]

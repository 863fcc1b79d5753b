"""Undocumented names of multiprocessing, torch and Ray that the engines use, each at its place.

A release that moves one of them fails here, by name, and not as a cluster that never starts.
"""

import inspect
import multiprocessing.util
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
import ray._private.node
import ray._private.parameter
from ray._private import services
from ray.tune.schedulers import PopulationBasedTraining, pbt

from ropewalk.cluster.engines.ray_agent import NO_PORTS, PORT
from tests.cluster.conftest import ROOT

PARTS = ("cluster", "datapipe", "jobs", "k8s", "sharding", "slurm")
# Ray's private names, by their owner; pyproject.toml pins Ray to the minor versions that this was tested with
RAY = {
    "ray._private.node": "Node",
    "ray._private.node:Node": "start_api_server start_monitor address dead_processes gcs_address get_logs_dir_path",
    "ray._private.parameter": "RayParams",
    "ray._private.services": "get_node _build_python_executable_command_memory_profileable",
    "ray._private.utils": "get_dashboard_dependency_error write_ray_address",
    "ray._private.ray_constants": "PROCESS_TYPE_DASHBOARD_AGENT PROCESS_TYPE_RUNTIME_ENV_AGENT",
    "ray._private.authentication.authentication_token_setup": "ensure_token_if_auth_enabled",
    "ray._private.log_monitor": "LogMonitor is_proc_alive logger",
    "ray._raylet": "GcsClient",
    "ray.tune.schedulers:PopulationBasedTraining": "_exploit _get_new_config",
}
RAY_PARAMETERS = (
    "node_ip_address node_name num_cpus num_gpus object_store_memory min_worker_port max_worker_port temp_dir gcs_address"
    " gcs_server_port include_dashboard include_log_monitor no_monitor dashboard_agent_listen_port resources labels"
)


def source(function: Any) -> str:
    return inspect.getsource(function)


def test_multiprocessing_starts_its_fork_server_by_the_function_that_is_replaced() -> None:
    assert list(inspect.signature(multiprocessing.util.spawnv_passfds).parameters) == ["path", "args", "passfds"]


def test_torch_has_the_caches_that_are_emptied() -> None:
    """If torch adds another cache of meshes, test_groups_that_break_leave_nothing_in_the_process fails."""
    assert callable(pkgutil.resolve_name("torch.distributed.tensor.debug:_clear_sharding_prop_cache"))
    assert callable(pkgutil.resolve_name("torch.distributed.tensor._redistribute:clear_redistribute_planner_cache"))
    topology = pkgutil.resolve_name("torch.distributed.tensor._collective_utils:MeshTopoInfo")
    assert callable(topology.build_from_mesh.cache_clear)


@pytest.mark.parametrize(("owner", "names"), RAY.items())
def test_ray_has_the_private_names_that_are_used(owner: str, names: str) -> None:
    parent = pkgutil.resolve_name(owner)
    assert [name for name in names.split() if not hasattr(parent, name)] == []


def test_no_other_private_name_of_ray_is_used() -> None:
    files = [path for folder in PARTS for path in (ROOT / folder).rglob("*.py") if "ray._" in path.read_text()]
    assert [path.name for path in files] == ["ray_start.py"]
    used = re.findall(r"\b(?:_private\.)?(_raylet|services|utils|ray_constants|log_monitor)\.(\w+)", files[0].read_text())
    listed = {owner.rpartition(".")[2]: names.split() for owner, names in RAY.items()}
    assert [f"{module}.{name}" for module, name in used if name not in listed[module]] == []


def test_a_ray_node_is_started_by_the_methods_functions_and_parameters_that_are_replaced_or_set() -> None:
    node = source(ray._private.node.Node)
    for call in ("self.start_api_server(", "self.start_monitor(", "ray._private.services.get_node("):
        assert call in node
    assert "_build_python_executable_command_memory_profileable(" in source(services.start_raylet)
    assert "get_dashboard_dependency_error()" in source(services.start_raylet) + source(services.start_api_server)
    accepted = inspect.signature(ray._private.parameter.RayParams).parameters
    assert set(RAY_PARAMETERS.split()) <= accepted.keys()
    assert {"head", "shutdown_at_exit", "spawn_reaper"} <= inspect.signature(ray._private.node.Node).parameters.keys()
    assert "_system_config" in source(ray.init)
    assert "self._trial_state" in source(PopulationBasedTraining)
    assert "last_perturbation_time" in source(pbt)
    library = Path(ray._raylet.__file__).read_bytes()
    assert b"RAY_gcs_rpc_server_reconnect_timeout_s" in library
    assert b"RAY_prestart_worker_first_driver" in library


def test_ray_waits_for_its_agents_at_the_files_that_our_stand_ins_write() -> None:
    library = Path(ray._raylet.__file__).read_bytes()
    for port in (*NO_PORTS, PORT):
        assert port.encode() in library, port
    assert "--runtime-env-agent-port=" in source(services.start_raylet)

"""The nodes of a placement group as an allocation: a trial's agents run where Ray has set cores and GPUs aside for them."""

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ropewalk.cluster.config import Resources
from ropewalk.cluster.gpus import DEVICES_VARIABLE
from ropewalk.cluster.process.forking import Process, wait_by_polling
from ropewalk.cluster.process.kill import end, family, processes_of
from ropewalk.cluster.process.ports import ReservedPort
from ropewalk.cluster.process.scratch import make_scratch, remove_scratch
from ropewalk.cluster.process.signals import stop_signals_blocked
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import StopReason
from ropewalk.cluster.supervise.agent_environment import agent_environment
from ropewalk.cluster.supervise.allocation import AgentSpec, Allocation, StoreSpec
from ropewalk.jobs.runs.submit.launcher import OURS

ANSWER_SECONDS = 60.0
LOOK_SECONDS = 0.3  # between two questions about one process
NODE_GONE = -signal.SIGKILL  # how a process ended whose node or actor is not there any more


class NodeServer:
    """An actor on a node: it starts commands there, polls them and ends them."""

    def __init__(self) -> None:
        self.disk = make_scratch("n")
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.store_port = ReservedPort()

    def address(self) -> str:
        """The address under which the other nodes reach this one."""
        return str(ray.util.get_node_ip_address())

    def free_port(self) -> int:
        """Reserve a port of this node that this user alone can bind, until the next call."""
        return self.store_port.take(self.address())

    def start(self, command: list[str], environment: Mapping[str, str], log: str) -> int:
        """Start a command in a session of its own; returns its process id."""
        # Ray has set which GPUs are this actor's
        values = {name: value for name, value in os.environ.items() if name == DEVICES_VARIABLE or name not in OURS}
        with open(log, "ab") as stream, stop_signals_blocked():
            process = subprocess.Popen(
                command,
                stdout=stream,
                stderr=stream,
                stdin=subprocess.DEVNULL,
                env={**values, **environment, "TMPDIR": str(self.disk)},
                start_new_session=True,
            )
        self.processes[process.pid] = process
        return process.pid

    def poll(self, pid: int) -> int | None:
        """The exit code of a process, or None while it runs."""
        return self.processes[pid].poll()

    def signal(self, pid: int, number: int) -> None:
        """Send a signal to a process."""
        self.processes[pid].send_signal(number)

    def end(self, pid: int) -> int:
        """Kill a process and its descendants; returns its exit code."""
        end(family(pid))
        return self.processes[pid].wait()

    def clean(self) -> None:
        """End all processes that were started here."""
        end(processes_of(self.disk))

    def close(self) -> None:
        """End all processes that were started here, and remove their files."""
        self.clean()
        remove_scratch(self.disk)


class RemoteProcess:
    """A process on another node, as `ropewalk.cluster.process.forking.Process` wants it."""

    def __init__(self, server: Any, pid: int, args: list[str]) -> None:
        self.server, self.pid, self.args = server, pid, args
        self.returncode: int | None = None
        self._next_look = 0.0

    def poll(self) -> int | None:
        """Look whether the process has ended, asking its node at most every LOOK_SECONDS."""
        if self.returncode is None and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + LOOK_SECONDS
            self.returncode = _answer(self.server.poll.remote(self.pid), NODE_GONE)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the process. Raises subprocess.TimeoutExpired."""
        return wait_by_polling(self, timeout, LOOK_SECONDS)

    def send_signal(self, sig: int) -> None:
        """Send a signal to the process."""
        _answer(self.server.signal.remote(self.pid, int(sig)), None)

    def terminate(self) -> None:
        """Send SIGTERM to the process."""
        self.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """Kill the process and its descendants."""
        if self.returncode is None:
            self.returncode = _answer(self.server.end.remote(self.pid), NODE_GONE)


def _answer(reference: Any, otherwise: Any) -> Any:
    """An actor's answer, or `otherwise` where the actor is gone."""
    try:
        return ray.get(reference, timeout=ANSWER_SECONDS)
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
        return otherwise


class RayClusterAllocation(Allocation):
    """A server on each bundle of the trial's placement group. `sweep_stop_reason` says why the whole sweep must stop, if so."""

    name = "allocation"
    owner_limits_time = True  # the sweep has one for all its trials

    def __init__(self, run: RunDir, resources: Resources, group: PlacementGroup, sweep_stop_reason: Callable[[], str]) -> None:
        self.run, self.resources, self.sweep_stop_reason = run, resources, sweep_stop_reason
        self.token = secrets.token_hex(32)  # lives in memory only
        self.gone: set[int] = set()
        cpus, gpus = cpus_of(resources), resources.gpus
        server = ray.remote(NodeServer)
        self.servers = [
            server.options(
                num_cpus=cpus,
                num_gpus=gpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle),
            ).remote()
            for bundle in range(resources.nodes.most)
        ]
        self.addresses: list[str] = ray.get([one.address.remote() for one in self.servers])

    def initial_nodes(self) -> list[int]:
        """Return the nodes that were not lost."""
        return [node for node in range(len(self.servers)) if node not in self.gone]

    def address(self, node: int) -> str:
        """Return the node's address, as Ray knows it."""
        return self.addresses[node]

    def free_port(self) -> int:
        """Reserve a port of node 0."""
        return int(ray.get(self.servers[0].free_port.remote()))

    def start(self, node: int, spec: AgentSpec | StoreSpec, log: Path) -> Process:
        """Start a command on a node, through its server."""
        cpus = cpus_of(self.resources)
        values = agent_environment(self.run, self.resources, cpus=cpus, ray_token=self.token)
        pid = ray.get(self.servers[node].start.remote(spec.command(), values, str(log)))
        return RemoteProcess(self.servers[node], pid, spec.command())

    def end(self, process: Process) -> None:
        """Kill a process and its descendants."""
        assert isinstance(process, RemoteProcess)
        process.end()

    def clean_up(self, node: int) -> None:
        """End processes that have left the agent's process group."""
        _answer(self.servers[node].clean.remote(), None)

    def mark_lost(self, node: int) -> None:
        """Stop using a node."""
        self.clean_up(node)
        self.gone.add(node)

    def release(self, node: int) -> None:
        """Stop using a node; Ray keeps it for the trial until that is over."""
        self.gone.add(node)

    def stop_reason(self) -> str:
        """Say that the whole sweep is preempted, if it is."""
        return StopReason.PREEMPTED if self.sweep_stop_reason() == StopReason.PREEMPTED else ""

    def query_stop_reason(self) -> str:
        """Say that the sweep is preempted: what stops agents past their supervisor stops the whole sweep."""
        return StopReason.PREEMPTED

    def can_retry(self) -> bool:
        """Say whether all nodes are still there, and the sweep keeps running."""
        return not self.gone and not self.sweep_stop_reason()

    def close(self) -> None:
        """End all processes of the trial and remove its files, on every node."""
        for server in self.servers:
            _answer(server.close.remote(), None)
            ray.kill(server)


def cpus_of(resources: Resources) -> int:
    """The cores that a trial takes on each of its nodes."""
    return resources.cpus or resources.local_world_size

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

from cluster.config import Resources
from cluster.process.forking import Process, wait_by_polling
from cluster.process.kill import end, family, processes_of
from cluster.process.ports import ReservedPort
from cluster.process.scratch import make_scratch, remove_scratch
from cluster.process.signals import stop_signals_blocked
from cluster.run.directory import RunDir
from cluster.spec import StopReason
from cluster.supervise.agent_environment import agent_environment
from cluster.supervise.allocation import AgentSpec, Allocation, StoreSpec
from jobs.sweep.launcher import OURS

ANSWER_SECONDS = 60.0
LOOK_SECONDS = 0.3  # between two questions about one process
NODE_GONE = -signal.SIGKILL  # how a process ended whose node or actor is not there any more


class NodeServer:
    """In an actor on a node: starts commands there, tells how they are, ends them."""

    def __init__(self) -> None:
        self.disk = make_scratch("n")
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.store_port = ReservedPort()

    def address(self) -> str:
        """Under which the other nodes reach this one."""
        return str(ray.util.get_node_ip_address())

    def free_port(self) -> int:
        """A port of this node that this user alone can bind, until this is asked again."""
        return self.store_port.take(self.address())

    def start(self, command: list[str], environment: Mapping[str, str], log: str) -> int:
        """Start a command in a session of its own; its process id."""
        values = {name: value for name, value in os.environ.items() if name not in OURS}
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
        """How it ended, or None."""
        return self.processes[pid].poll()

    def signal(self, pid: int, number: int) -> None:
        """Hand a signal on."""
        self.processes[pid].send_signal(number)

    def end(self, pid: int) -> int:
        """Kill it with all that it has started; how it ended."""
        end(family(pid))
        return self.processes[pid].wait()

    def clean(self) -> None:
        """Nothing of what was started here stays."""
        end(processes_of(self.disk))

    def close(self) -> None:
        """Nothing of this node's disk stays either."""
        self.clean()
        remove_scratch(self.disk)


class RemoteProcess:
    """A process on another node, as `cluster.process.forking.Process` wants it."""

    def __init__(self, server: Any, pid: int, args: list[str]) -> None:
        self.server, self.pid, self.args = server, pid, args
        self.returncode: int | None = None
        self._next_look = 0.0

    def poll(self) -> int | None:
        """As Popen's, a moment late."""
        if self.returncode is None and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + LOOK_SECONDS
            self.returncode = _answer(self.server.poll.remote(self.pid), NODE_GONE)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """As Popen's."""
        return wait_by_polling(self, timeout, LOOK_SECONDS)

    def send_signal(self, sig: int) -> None:
        """As Popen's."""
        _answer(self.server.signal.remote(self.pid, int(sig)), None)

    def terminate(self) -> None:
        """As Popen's."""
        self.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """Kill it with all that it has started."""
        if self.returncode is None:
            self.returncode = _answer(self.server.end.remote(self.pid), NODE_GONE)


def _answer(reference: Any, otherwise: Any) -> Any:
    """What an actor says, or something else where it is not there any more."""
    try:
        return ray.get(reference, timeout=ANSWER_SECONDS)
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
        return otherwise


class RayClusterAllocation(Allocation):
    """One server a bundle of the trial's placement group. `order` tells why the whole sweep has to leave, if it has."""

    name = "allocation"
    owner_limits_time = True  # the sweep has one for all its trials

    def __init__(self, run: RunDir, resources: Resources, group: PlacementGroup, order: Callable[[], str]) -> None:
        self.run, self.resources, self.order = run, resources, order
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
        """All of them."""
        return [node for node in range(len(self.servers)) if node not in self.gone]

    def address(self, node: int) -> str:
        """As Ray knows the node."""
        return self.addresses[node]

    def free_port(self) -> int:
        """Of node 0."""
        return int(ray.get(self.servers[0].free_port.remote()))

    def start(self, node: int, spec: AgentSpec | StoreSpec, log: Path) -> Process:
        """Start a command there."""
        cpus = cpus_of(self.resources)
        values = agent_environment(self.run, self.resources, cpus=cpus, ray_token=self.token)
        pid = ray.get(self.servers[node].start.remote(spec.command(), values, str(log)))
        return RemoteProcess(self.servers[node], pid, spec.command())

    def end(self, process: Process) -> None:
        """Kill it and its descendants."""
        assert isinstance(process, RemoteProcess)
        process.end()

    def clean_up(self, node: int) -> None:
        """End what had left the agent's process group."""
        _answer(self.servers[node].clean.remote(), None)

    def mark_lost(self, node: int) -> None:
        """It is not used again."""
        self.clean_up(node)
        self.gone.add(node)

    def release(self, node: int) -> None:
        """It stays set aside until the trial is over."""
        self.gone.add(node)

    def stop_reason(self) -> str:
        """The whole sweep has to leave."""
        return StopReason.PREEMPTED if self.order() == StopReason.PREEMPTED else ""

    def query_stop_reason(self) -> str:
        """Whoever stops agents past us stops the sweep."""
        return StopReason.PREEMPTED

    def can_retry(self) -> bool:
        """All nodes are still there."""
        return not self.gone and not self.order()

    def close(self) -> None:
        """Nothing of the trial stays on any node."""
        for server in self.servers:
            _answer(server.close.remote(), None)
            ray.kill(server)


def cpus_of(resources: Resources) -> int:
    """Cores that a trial takes on each of its nodes."""
    return resources.cpus or resources.local_world_size

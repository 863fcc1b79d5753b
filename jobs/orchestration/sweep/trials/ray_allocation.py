"""Allocation of a trial on a Ray placement group: its agents run on cores and GPUs reserved by Ray."""

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
from ropewalk.cluster.process.scratch import make_scratch, remove_scratch
from ropewalk.cluster.process.signals import stop_signals_blocked
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.secrets.variables import without_secrets
from ropewalk.cluster.spec import StopReason
from ropewalk.cluster.supervise.agent_environment import agent_environment
from ropewalk.cluster.supervise.allocation import AgentSpec, Allocation, GroupServerSpec
from ropewalk.jobs.runs.submit.launcher import OURS

ANSWER_SECONDS = 60.0
POLL_SECONDS = 0.3  # between two polls of a process
NODE_GONE = -signal.SIGKILL  # exit code of a process whose node or actor is gone


class NodeServer:
    """Actor on a node that starts, polls and ends commands there."""

    def __init__(self) -> None:
        self.disk = make_scratch("n")
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def address(self) -> str:
        return str(ray.util.get_node_ip_address())

    def start(self, command: list[str], environment: Mapping[str, str], log: str) -> int:
        """Start a command in its own session and return its process id."""
        # Ray sets the variable of this actor's GPUs
        values = {
            name: value for name, value in without_secrets(os.environ).items() if name == DEVICES_VARIABLE or name not in OURS
        }
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
        return self.processes[pid].poll()

    def signal(self, pid: int, number: int) -> None:
        self.processes[pid].send_signal(number)

    def end(self, pid: int) -> int:
        """Kill a process and its descendants, and return its exit code."""
        end(family(pid))
        return self.processes[pid].wait()

    def clean(self) -> None:
        """Kill all processes started here."""
        end(processes_of(self.disk))

    def close(self) -> None:
        """Kill all processes started here and remove their files."""
        self.clean()
        remove_scratch(self.disk)


class RemoteProcess:
    """A process on another node, with the interface of `ropewalk.cluster.process.forking.Process`."""

    def __init__(self, server: Any, pid: int, args: list[str]) -> None:
        self.server, self.pid, self.args = server, pid, args
        self.returncode: int | None = None
        self._next_look = 0.0

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs; query its node at most every POLL_SECONDS."""
        if self.returncode is None and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + POLL_SECONDS
            self.returncode = _answer(self.server.poll.remote(self.pid), NODE_GONE)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the process. Raises subprocess.TimeoutExpired."""
        return wait_by_polling(self, timeout, POLL_SECONDS)

    def send_signal(self, sig: int) -> None:
        _answer(self.server.signal.remote(self.pid, int(sig)), None)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def end(self) -> None:
        if self.returncode is None:
            self.returncode = _answer(self.server.end.remote(self.pid), NODE_GONE)


def _answer(reference: Any, otherwise: Any) -> Any:
    """Return an actor's answer, or `otherwise` if the actor is gone."""
    try:
        return ray.get(reference, timeout=ANSWER_SECONDS)
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
        return otherwise


class RayClusterAllocation(Allocation):
    """Nodes of a trial: a server per bundle of its placement group. `sweep_stop_reason` returns why the whole sweep must stop."""

    name = "allocation"
    owner_limits_time = True  # the sweep has a time limit for all its trials

    def __init__(self, run: RunDir, resources: Resources, group: PlacementGroup, sweep_stop_reason: Callable[[], str]) -> None:
        self.run, self.resources, self.sweep_stop_reason = run, resources, sweep_stop_reason
        self.token = secrets.token_hex(32)  # only kept in memory
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
        self.addresses: list[str] = ray.get([server.address.remote() for server in self.servers])

    def initial_nodes(self) -> list[int]:
        return [node for node in range(len(self.servers)) if node not in self.gone]

    def address(self, node: int) -> str:
        return self.addresses[node]

    def start(self, node: int, spec: AgentSpec | GroupServerSpec, log: Path) -> Process:
        cpus = cpus_of(self.resources)
        values = agent_environment(self.run, self.resources, cpus=cpus, ray_token=self.token)
        pid = ray.get(self.servers[node].start.remote(spec.command(), values, str(log)))
        return RemoteProcess(self.servers[node], pid, spec.command())

    def end(self, process: Process) -> None:
        assert isinstance(process, RemoteProcess)
        process.end()

    def clean_up(self, node: int) -> None:
        """Kill processes that have left the agent's process group."""
        _answer(self.servers[node].clean.remote(), None)

    def mark_lost(self, node: int) -> None:
        self.clean_up(node)
        self.gone.add(node)

    def release(self, node: int) -> None:
        """Stop using a node; Ray keeps it reserved until the trial ends."""
        self.gone.add(node)

    def stop_reason(self) -> str:
        """Return PREEMPTED if the whole sweep is preempted, else an empty string."""
        return StopReason.PREEMPTED if self.sweep_stop_reason() == StopReason.PREEMPTED else ""

    def query_stop_reason(self) -> str:
        """Return PREEMPTED: a stop that reaches agents directly is one of the whole sweep."""
        return StopReason.PREEMPTED

    def can_retry(self) -> bool:
        """Return True if all nodes are present and the sweep keeps running."""
        return not self.gone and not self.sweep_stop_reason()

    def close(self) -> None:
        """Kill all processes of the trial and remove its files on every node."""
        for server in self.servers:
            _answer(server.close.remote(), None)
            ray.kill(server)


def cpus_of(resources: Resources) -> int:
    """Return the cores of a trial per node."""
    return resources.cpus or resources.local_world_size

"""Virtual nodes of this machine: each is a process group with its own loopback address (127.0.1.K).

A run of two nodes is thus a real group of two agents, and a node is killed by killing its processes.
"""

import os
import secrets
import shlex
import tempfile
import time
from pathlib import Path

from ropewalk.cluster.backends.local.held_gpus import HeldGpus
from ropewalk.cluster.config import Resources
from ropewalk.cluster.gpus import (
    DEVICES_VARIABLE,
    MACHINE_DEVICES_VARIABLE,
    ORDER_VARIABLE,
    deal_devices,
    device_order,
    users_devices,
)
from ropewalk.cluster.process.forking import Process, fork_program
from ropewalk.cluster.process.kill import end, family, processes_of
from ropewalk.cluster.process.scratch import make_scratch, remove_scratch, sweep
from ropewalk.cluster.process.signals import SignalFlag
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.key import KEY_BYTES
from ropewalk.cluster.run.names import GROUP_KEY
from ropewalk.cluster.run.node_memory import memory_root
from ropewalk.cluster.spec import Engine, StopReason
from ropewalk.cluster.supervise.agent_environment import agent_environment
from ropewalk.cluster.supervise.allocation import AgentSpec, Allocation, GroupServerSpec

OUTER_TMPDIR_VARIABLE = "ROPEWALK_TMPDIR"  # TMPDIR of the machine, for processes that outlive the node
NODE_RETURN_SECONDS = 10.0  # time until a dead virtual node is usable again, as after a reboot


def address_of(node: int) -> str:
    """Return a virtual node's loopback address."""
    return f"127.0.1.{node + 1}"


def render_script(run_path: str, attempt: str, resources: Resources, engine: Engine) -> str:
    """Render the commands of a run as a script to read or to run by hand (`--dry-run`)."""
    lines = [
        "#!/bin/bash",
        "# Processes that the local backend starts: one agent per virtual node, each in its own process group.",
    ]
    if engine is Engine.RANKS:
        key = shlex.quote(f"{run_path}/attempts/{int(attempt):04d}/{GROUP_KEY}")
        lines.append(f"(umask 077; head -c {KEY_BYTES} /dev/urandom | od -An -tx1 | tr -d ' \\n' > {key})")
        nodes, expected = str(resources.nodes), resources.allocated_nodes.most
        server = GroupServerSpec(run_path=run_path, attempt=int(attempt), nodes=nodes, expected=expected, host=address_of(0))
        lines.append(f"{shlex.join(server.command())} &")
    nodes = str(resources.nodes)
    for node, devices in enumerate(deal_devices(resources)):
        address = address_of(node)
        command = AgentSpec(run_path=run_path, attempt=int(attempt), node=node, nodes=nodes, address=address).command()
        variables = [f"{DEVICES_VARIABLE}={','.join(devices)}", f"{ORDER_VARIABLE}={device_order()}"] if devices else []
        lines.append(f"{' '.join([*variables, shlex.join(command)])} &")
    return "\n".join([*lines, "wait", ""])


class LocalAllocation(Allocation):
    """Virtual nodes of one run. `stop` is set when the machine's owner wants it back."""

    name = "local"

    def __init__(self, run: RunDir, resources: Resources, stop: SignalFlag) -> None:
        self.run, self.resources, self.stop = run, resources, stop
        self.leaving = False  # the supervisor has to exit
        self.scratch = make_scratch("r")  # contains the nodes' local disks
        self.ray_token = secrets.token_hex(32)  # never written to disk
        self.away: dict[int, float] = {}  # monotonic time at which a dead node is usable again
        self.busy: set[int] = set()
        self.devices: list[list[str]] = []  # GPUs of each node, as CUDA names them
        self._gpus = HeldGpus()

    def initial_nodes(self) -> list[int]:
        """Return the nodes that the run requests now; nodes that died are usable again."""
        self.away = {}
        self._deal_gpus()
        self.busy = set(range(self.resources.wanted_nodes(self.run.wanted_nodes)))
        return sorted(self.busy)

    def _deal_gpus(self) -> None:
        if self.resources.gpus:
            chosen = self._gpus.take(self.resources.gpus * self.resources.allocated_nodes.most)
            if shared := self._gpus.shared(chosen):
                self.run.event("gpus_shared", devices=", ".join(shared))
            self.devices = deal_devices(self.resources, chosen)
            self.run.event("gpus_taken", devices=", ".join(chosen))
        else:
            self.devices = deal_devices(self.resources)

    def address(self, node: int) -> str:
        return address_of(node)

    def start(self, node: int, spec: AgentSpec | GroupServerSpec, log: Path) -> Process:
        """Start a command in its own process group, with its temporary files on the node's disk."""
        disk = self._disk(node)
        disk.mkdir(exist_ok=True)
        return fork_program(spec.command(), {**os.environ, **self._environment(node)}, log)

    def start_group_server(self, spec: GroupServerSpec, log: Path) -> Process:
        """Start the group server on no virtual node, so that it outlives them all."""
        return fork_program(spec.command(), {**os.environ, "TMPDIR": str(self.scratch)}, log)

    def _environment(self, node: int) -> dict[str, str]:
        cpus = max(1, (os.cpu_count() or 1) // self.resources.allocated_nodes.most)  # virtual nodes share this machine's cores
        return {
            **agent_environment(self.run, self.resources, cpus=cpus, ray_token=self.ray_token),
            "TMPDIR": str(self._disk(node)),
            OUTER_TMPDIR_VARIABLE: tempfile.gettempdir(),
            MACHINE_DEVICES_VARIABLE: users_devices(),
            DEVICES_VARIABLE: ",".join(self.devices[node]),
            ORDER_VARIABLE: device_order(),
        }

    def _disk(self, node: int) -> Path:
        """Return the folder that serves as the node's local disk and identifies its processes."""
        return self.scratch / f"n{node}"

    def end(self, process: Process) -> None:
        end(family(process.pid))
        process.wait()

    def clean_up(self, node: int) -> None:
        """Kill processes of the node that left the agent's process group."""
        end(processes_of(self._disk(node)))

    def mark_lost(self, node: int) -> None:
        """Kill everything on a node that died, and make it usable again after NODE_RETURN_SECONDS."""
        self.clean_up(node)
        sweep(memory_root())
        self.busy.discard(node)
        self.away[node] = time.monotonic() + NODE_RETURN_SECONDS

    def acquire(self, wanted: int) -> list[int]:
        now = time.monotonic()
        free = [n for n in range(self.resources.allocated_nodes.most) if n not in self.busy and self.away.get(n, 0.0) <= now]
        chosen = free[: max(wanted, 0)]
        self.busy.update(chosen)
        return chosen

    def release(self, node: int) -> None:
        self.busy.discard(node)
        self.away.pop(node, None)

    def stop_reason(self) -> str:
        """Return PREEMPTED once after the supervisor got a stop signal, else an empty string."""
        if self.stop.is_set():
            self.stop.clear()
            return StopReason.PREEMPTED
        return ""

    def can_retry(self) -> bool:
        """Return False if the supervisor itself has to exit."""
        return not self.leaving

    def close(self) -> None:
        """Kill everything on the nodes, remove their disks, and release the GPUs."""
        self._gpus.release()
        end(processes_of(self.scratch))
        sweep(memory_root())  # copies of training states, if agents were killed
        remove_scratch(self.scratch)

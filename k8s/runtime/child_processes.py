"""Processes of an attempt in this pod: the agent and, in the leader's pod, the group server."""

import logging
import os
import signal
from collections.abc import Sequence

from ropewalk.cluster.process.forking import Forked, fork_program
from ropewalk.cluster.process.kill import end, family
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.key import sign
from ropewalk.cluster.supervise.agent_environment import agent_environment
from ropewalk.cluster.supervise.takeover import outlives_nodes
from ropewalk.k8s.runtime.protocol import StartAgent, StartGroupServer

log = logging.getLogger(__name__)


class ChildProcess:
    """A process that the coordinator has started in this pod, with the number that later messages use for it."""

    def __init__(self, number: int, process: Forked) -> None:
        self.number, self.process = number, process

    def kill(self) -> None:
        end(family(self.process.pid))


class AgentProcess(ChildProcess):
    """The agent of this pod. `stays`: it goes on when the leader's pod is lost, until another coordinator takes it over."""

    def __init__(self, number: int, process: Forked, attempt: int, *, stays: bool) -> None:
        super().__init__(number, process)
        self.attempt, self.stays = attempt, stays

    @classmethod
    def start(cls, run: RunDir, message: StartAgent, ray_token: str) -> "AgentProcess":
        log.info("node %d of attempt %d", message.node, message.attempt)
        environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": ray_token}
        output = run.log_dir(message.attempt) / f"node-{message.node}.log"
        process = fork_program(message.spec(str(run.path)).command(), environment, output)
        return cls(message.agent, process, message.attempt, stays=outlives_nodes(run, message.attempt))

    def poll(self) -> int | None:
        return self.process.poll()

    def stop(self) -> None:
        """Ask the agent to save and exit."""
        self.process.send_signal(signal.SIGUSR2)

    def clean_up(self, spared: Sequence[ChildProcess | Forked | None]) -> None:
        """Kill processes that the agent has left behind: all descendants of this process except `spared` and theirs."""
        pids = [each.process.pid if isinstance(each, ChildProcess) else each.pid for each in spared if each is not None]
        spared_pids = {os.getpid(), *(process.pid for pid in pids for process in family(pid))}
        end(each for each in family(os.getpid()) if each.pid not in spared_pids)


class GroupServerProcess(ChildProcess):
    """The process in which the agents of an attempt meet."""

    @classmethod
    def start(cls, run: RunDir, message: StartGroupServer) -> "GroupServerProcess":
        output = run.log_dir(message.attempt) / "groups.log"
        return cls(message.agent, fork_program(message.spec(str(run.path)).command(), dict(os.environ), output))


def ray_token(key: str) -> str:
    """Return the token of the run's Ray cluster, which every pod derives from the key."""
    return sign(key, "ray").hex()


def share_of_node(run: RunDir) -> dict[str, str]:
    """Return the variables that limit a pod's processes to its share of the node.

    The manifest requests cores without a limit, and an image may expose all GPUs although the pod requests none.
    """
    resources = run.resources()
    return agent_environment(run, resources, cpus=resources.cpus or resources.local_world_size)

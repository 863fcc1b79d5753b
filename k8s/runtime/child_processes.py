"""What runs in this pod for an attempt: its agent, and beside the conductor the group's store. The conductor names their
places in the attempt, never their command lines.
"""

import logging
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from cluster.process.forking import Forked, fork_program
from cluster.process.kill import end, family
from cluster.run.directory import RunDir
from cluster.supervise.agent_environment import agent_environment
from cluster.supervise.allocation import agent_command, store_command

log = logging.getLogger(__name__)

# what a conductor may say of an agent's place; anything else would be a word for a command line
PLACE = {
    "attempt": r"\d{1,9}",
    "node": r"\d{1,6}",
    "nodes": r"\d{1,6}(\.\.\d{1,6})?",
    "address": r"[0-9a-fA-F.:]{1,45}",
    "rendezvous": r"([0-9a-fA-F.:]{1,45}:\d{1,5})?",
    "log": r"node-\d{1,6}\.log",
    "port": r"\d{1,5}",
}


def checked(message: Mapping[str, Any], *names: str) -> dict[str, str]:
    """Parts of a place. Raises ValueError for what is none."""
    place = {name: str(message.get(name, "")) for name in names}
    for name, value in place.items():
        if not re.fullmatch(PLACE[name], value):
            raise ValueError(f"{name}: {value!r} is no part of a place in an attempt")
    return place


class LocalAgent:
    """One agent process."""

    def __init__(self, number: int, process: Forked) -> None:
        self.number, self.process = number, process

    @classmethod
    def start(cls, run: RunDir, message: Mapping[str, Any], ray_token: str) -> "LocalAgent":
        """Start the agent of the place that the message names. Raises ValueError if it names none."""
        place = checked(message, "attempt", "node", "nodes", "address", "rendezvous", "log")
        words = agent_command(
            sys.executable,
            str(run.path),
            place["attempt"],
            node=int(place["node"]),
            nodes=place["nodes"],
            address=place["address"],
            rendezvous=place["rendezvous"],
        )
        log.info("node %s of attempt %s", place["node"], place["attempt"])
        output = run.log_dir(int(place["attempt"])) / place["log"]
        secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": ray_token}
        return cls(int(message["agent"]), fork_program(words, {**os.environ, **secret}, output))

    def poll(self) -> int | None:
        """Its exit code, once it has ended."""
        return self.process.poll()

    def stop(self) -> None:
        """Have it save and leave."""
        self.process.send_signal(signal.SIGUSR2)

    def kill(self) -> None:
        """End it and all that it has started, now."""
        end(family(self.process.pid))

    def end_ranks(self) -> None:
        """End its ranks, known by where their output goes; the agent forms the group anew."""
        ranks = [process for process in family(self.process.pid) if _is_rank(process.pid)]
        log.info("a peer is dead: %d processes of ranks are ended, which would wait for it", len(ranks))
        end(ranks)

    def clean(self, spared: Sequence[int]) -> None:
        """End what it has left behind: all that descends from this process, but what descends from those that are spared."""
        kept = {os.getpid(), *(process.pid for pid in spared for process in family(pid))}
        end(each for each in family(os.getpid()) if each.pid not in kept)


class Store:
    """The store in which the agents of an attempt meet."""

    def __init__(self, number: int, process: Forked) -> None:
        self.number, self.process = number, process

    @classmethod
    def start(cls, run: RunDir, message: Mapping[str, Any]) -> "Store":
        """Start it at the address and port that the message names. Raises ValueError if it names none."""
        place = checked(message, "address", "port", "attempt")
        words = store_command(sys.executable, place["address"], place["port"])
        return cls(int(message["agent"]), fork_program(words, dict(os.environ), run.log_dir(int(place["attempt"])) / "store.log"))

    def kill(self) -> None:
        """End it, now."""
        end(family(self.process.pid))


def _is_rank(pid: int) -> bool:
    with suppress(OSError):
        return re.fullmatch(r"rank-\d+\.log", os.path.basename(os.readlink(f"/proc/{pid}/fd/1"))) is not None
    return False


def share_of_node(run: RunDir) -> dict[str, str]:
    """Variables that keep a pod's processes to its share of its node: the cores that the manifest asks for, as it sets no limit,
    and no GPU where it asks for none, as an image may show them all.
    """
    resources = run.resources()
    return agent_environment(run, resources, cpus=resources.cpus or resources.local_world_size)

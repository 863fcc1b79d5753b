"""The agent in this pod, started from a place in an attempt that the conductor names, and everything that it starts."""

import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from cluster.attempt import agent_command
from cluster.config import Resources
from cluster.ports import NODE_CPUS_VARIABLE
from cluster.processes import end, family
from cluster.run_dir import RunDir
from cluster.spec import Engine

log = logging.getLogger(__name__)

# what a conductor may say of an agent's place; anything else would be a word for a command line
PLACE = {
    "attempt": r"\d{1,9}",
    "node": r"\d{1,6}",
    "nodes": r"\d{1,6}(\.\.\d{1,6})?",
    "address": r"[0-9a-fA-F.:]{1,45}",
    "rendezvous": r"([0-9a-fA-F.:]{1,45}:\d{1,5})?",
    "log": r"node-\d{1,6}\.log",
    "token": r"[0-9a-f]{64}",
}


class LocalAgent:
    """One agent process."""

    def __init__(self, number: int, process: subprocess.Popen[bytes]) -> None:
        self.number, self.process = number, process

    @classmethod
    def start(cls, run: RunDir, message: Mapping[str, Any]) -> "LocalAgent":
        """Start the agent of the place that the message names. Raises ValueError if it names none."""
        place = {name: str(message.get(name, "")) for name in PLACE}
        for name, value in place.items():
            if not re.fullmatch(PLACE[name], value):
                raise ValueError(f"{name}: {value!r} is no part of an agent's place")
        node = int(place["node"])
        words = agent_command(
            sys.executable,
            str(run.path),
            place["attempt"],
            node=node,
            nodes=place["nodes"],
            address=place["address"],
            rendezvous=place["rendezvous"],
        )
        log.info("node %d of attempt %s", node, place["attempt"])
        with (run.log_dir(int(place["attempt"])) / place["log"]).open("ab") as stream:
            process = subprocess.Popen(
                words,
                stdout=stream,
                stderr=stream,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **_environment(run, int(place["attempt"]), place["token"])},
                start_new_session=True,
            )
        return cls(int(message["agent"]), process)

    def poll(self) -> int | None:
        """Its exit code, once it has ended."""
        return self.process.poll()

    def stop(self) -> None:
        """Have it save and leave."""
        self.process.send_signal(signal.SIGUSR2)

    def kill(self) -> None:
        """End it and all that it has started, now."""
        descendants = [process for process in family(self.process.pid) if process.pid != self.process.pid]
        self.process.kill()
        self.process.wait()  # before anybody else: its exit code is ours
        end(descendants)

    def end_ranks(self) -> None:
        """End its ranks, known by where their output goes; the agent forms the group anew."""
        ranks = [process for process in family(self.process.pid) if _is_rank(process.pid)]
        log.info("a peer is dead: %d processes of ranks are ended, which would wait for it", len(ranks))
        end(ranks)

    def clean(self, spared: subprocess.Popen[bytes] | None) -> None:
        """End what it has left behind: all that descends from this process but the conductor."""
        kept = {os.getpid(), *(process.pid for process in (family(spared.pid) if spared is not None else []))}
        end(each for each in family(os.getpid()) if each.pid not in kept)


def _is_rank(pid: int) -> bool:
    with suppress(OSError):
        return re.fullmatch(r"rank-\d+\.log", os.path.basename(os.readlink(f"/proc/{pid}/fd/1"))) is not None
    return False


def _environment(run: RunDir, attempt: int, token: str) -> dict[str, str]:
    """What an agent needs beside the pod's own variables. A pod's share of its node is what the manifest asks for."""
    details = run.attempt_details(attempt).get("resources") or run.record["resources"]
    resources = Resources.model_validate(details)
    cpus = resources.cpus or resources.ranks_per_node
    values = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, NODE_CPUS_VARIABLE: str(cpus)}
    if "OMP_NUM_THREADS" not in os.environ and Engine(run.record["engine"]) is Engine.RANKS:
        values["OMP_NUM_THREADS"] = str(max(1, cpus // resources.ranks_per_node))
    return values

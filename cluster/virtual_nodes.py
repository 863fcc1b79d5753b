"""One attempt on virtual nodes: agents in process groups with addresses of their own (127.0.1.K) on this machine.

So a run of two nodes is a real rendezvous of two agents, and killing a node is killing everything on it.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from cluster.config import Resources
from cluster.errors import EXIT_DONE, EXIT_FAILED, EXIT_NEVER_RETRY, EXIT_REQUEUE
from cluster.files import append_line, write_atomically
from cluster.ports import NODE_CPUS_VARIABLE, free_port
from cluster.processes import end, family, processes_of
from cluster.run_dir import RunDir
from cluster.spec import Engine, Outcome, RunState

AGENTS = "agents.jsonl"  # one line an agent: node, pid
POLL_SECONDS = 0.1
NODE_RETURN_SECONDS = 10.0  # how long a virtual node is away when it died: as if it rebooted
SETTLE_SECONDS = 5.0  # what a group may take to leave after one of its nodes has left for good


def address_of(node: int) -> str:
    """A virtual node's own loopback address."""
    return f"127.0.1.{node + 1}"


def agent_command(run_path: str, attempt: str, node: int, resources: Resources, rendezvous: str) -> list[str]:
    """How the agent of one virtual node is started."""
    words = [sys.executable, "-m", "cluster.agent", run_path, "--attempt", attempt, "--node", str(node)]
    words += ["--nodes", str(resources.nodes), "--address", address_of(node)]
    return [*words, "--rendezvous", rendezvous] if rendezvous else words


def store_command(port: str) -> list[str]:
    """How the rendezvous store is started."""
    return [sys.executable, "-m", "cluster.store", "--host", "127.0.0.1", "--port", port]


def render_script(run_path: str, attempt: str, resources: Resources, engine: Engine, rendezvous: str) -> str:
    """The same commands as a script that a person can read, or run by hand: the local dry run."""
    lines = ["#!/bin/bash", "# What the local backend starts: one agent a virtual node, each in a process group of its own."]
    if engine is Engine.RANKS:
        lines.append(f"{shlex.join(store_command(rendezvous.rpartition(':')[2]))} &")
    nodes = range(resources.nodes.most)
    lines += [f"{shlex.join(agent_command(run_path, attempt, node, resources, rendezvous))} &" for node in nodes]
    return "\n".join([*lines, "wait", ""])


class Attempt:
    """One attempt: the store, the agents, what became of them."""

    def __init__(
        self, run: RunDir, number: int, resources: Resources, *, retry_bugs: bool, stop: threading.Event, ray_token: str
    ) -> None:
        self.run, self.resources, self.retry_bugs, self.stop, self.ray_token = run, resources, retry_bugs, stop, ray_token
        self.engine = Engine(run.record["engine"])
        self.number = number
        self.folder = self.run.attempt_dir(self.number)
        self.agents: dict[int, subprocess.Popen[bytes]] = {}
        self.codes: dict[int, int] = {}
        self.lost: list[str] = []
        self.returning: dict[int, float] = {}  # when a dead node is up again, by the monotonic clock
        self.store: subprocess.Popen[bytes] | None = None
        self.scratch = Path(tempfile.mkdtemp(prefix="r"))  # the nodes' own disks
        self.started = time.time()
        self.reason = ""  # why the run was asked to stop

    def carry_out(self) -> Outcome:
        """Start everything, wait for its end, write down how it went."""
        try:
            rendezvous = self._start_store() if self.engine is Engine.RANKS else ""
            script = render_script("RUN_DIR", str(self.number), self.resources, self.engine, rendezvous)
            write_atomically(self.folder / "job.sh", script)
            for node in range(self.resources.nodes.most):
                self._start_agent(node, rendezvous)
            self._watch(rendezvous)
        finally:
            self._end_all()
        outcome = self._conclude()
        self.run.write_outcome(self.number, outcome)
        self.run.event("attempt_ended", attempt=self.number, state=outcome.state, cause=outcome.cause)
        return outcome

    def _start_store(self) -> str:
        """Start the rendezvous store; agents wait for it, so that all import torch at the same time."""
        port = free_port("127.0.0.1")
        with (self.folder / "logs" / "store.log").open("ab") as stream:
            command = store_command(str(port))
            self.store = subprocess.Popen(command, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL)
        return f"127.0.0.1:{port}"

    def _scratch_of(self, node: int) -> Path:
        """A virtual node's own disk: what is left on it is found, and goes with the node."""
        place = self.scratch / f"n{node}"
        place.mkdir(exist_ok=True)
        return place

    def _start_agent(self, node: int, rendezvous: str) -> None:
        environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.ray_token}
        environment["TMPDIR"] = str(self._scratch_of(node))
        environment["GLOO_SOCKET_IFNAME"] = "lo"  # virtual nodes live on loopback; the host's own name may not resolve
        if self.engine is Engine.RANKS:
            ranks = self.resources.nodes.most * self.resources.ranks_per_node
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
        # virtual nodes share this machine's cores
        environment[NODE_CPUS_VARIABLE] = str(max(1, (os.cpu_count() or 1) // self.resources.nodes.most))
        with (self.folder / "logs" / f"node-{node}.log").open("ab") as stream:
            self.agents[node] = subprocess.Popen(
                agent_command(str(self.run.path), str(self.number), node, self.resources, rendezvous),
                stdout=stream,
                stderr=stream,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        append_line(self.folder / AGENTS, {"node": node, "pid": self.agents[node].pid, "started": time.time()})

    def _watch(self, rendezvous: str) -> None:
        """Until every agent has left: carry stops, bury lost nodes, shrink or give up."""
        limit_minutes = self.resources.time_limit_minutes
        limit = self.started + limit_minutes * 60 if limit_minutes else None
        leave_by: float | None = None
        while self.agents:
            self._carry_stop(limit)
            for node in self._ended():
                code = self.agents.pop(node).returncode
                if code < 0:  # a signal: the node is lost with everything on it
                    self._lose(node, code)
                else:
                    self.codes[node] = code
                    if code not in (EXIT_DONE, EXIT_REQUEUE):
                        leave_by = leave_by or time.monotonic() + SETTLE_SECONDS
            self._return_nodes(rendezvous)
            if self.lost and not self._enough():
                leave_by = leave_by or time.monotonic()  # the others cannot go on without it
            if (leave_by is not None and time.monotonic() >= leave_by) or (limit is not None and time.time() > limit):
                return
            time.sleep(POLL_SECONDS)

    def _ended(self) -> Sequence[int]:
        return [node for node, agent in self.agents.items() if agent.poll() is not None]

    def _enough(self) -> bool:
        present = len(self.agents) + sum(code in (EXIT_DONE, EXIT_REQUEUE) for code in self.codes.values())
        return self.resources.nodes.elastic and present >= self.resources.nodes.least

    def _lose(self, node: int, code: int) -> None:
        name = signal.Signals(-code).name
        self.lost.append(f"node {node} died ({name})")
        end(processes_of(self._scratch_of(node)))  # a dead node takes with it what had left the process group
        self.run.event("node_lost", node=node, signal=name, attempt=self.number)
        self.returning[node] = time.monotonic() + NODE_RETURN_SECONDS

    def _return_nodes(self, rendezvous: str) -> None:
        """An elastic run shrinks when a node dies, and grows again when the node is back."""
        for node in [n for n, at in self.returning.items() if time.monotonic() >= at]:
            del self.returning[node]
            if self._enough() and self.agents and not self.reason:
                self.run.event("node_returned", node=node, attempt=self.number)
                self._start_agent(node, rendezvous)

    def _carry_stop(self, limit: float | None) -> None:
        if self.reason:
            return
        if self.run.cancel_requested:
            self.reason = "cancelled"
        elif self.stop.is_set():
            self.stop.clear()
            self.reason = "preempted"
        elif limit is not None and time.time() > limit - self.resources.grace_seconds:
            self.reason = "time limit"
        else:
            return
        for agent in self.agents.values():
            agent.send_signal(signal.SIGUSR2)

    def _end_all(self) -> None:
        """Whatever is left of this attempt must not outlive it."""
        end(process for agent in self.agents.values() for process in family(agent.pid))
        end(processes_of(self.scratch))
        if self.store is not None:
            self.store.kill()
            self.store.wait()
        shutil.rmtree(self.scratch, ignore_errors=True)
        for node, agent in self.agents.items():
            self.codes.setdefault(node, agent.wait())

    def _conclude(self) -> Outcome:
        codes = set(self.codes.values())
        if EXIT_NEVER_RETRY in codes:
            return self._outcome(RunState.FAILED, EXIT_NEVER_RETRY, self._error_words())
        if codes == {EXIT_DONE} and (not self.lost or self.resources.nodes.elastic):
            return self._outcome(RunState.SUCCEEDED, EXIT_DONE, "done")
        if self.run.cancel_requested:
            saved = "after saving" if EXIT_REQUEUE in codes else "before it had saved anything more"
            return self._outcome(RunState.CANCELLED, EXIT_REQUEUE, f"cancelled {saved}")
        if EXIT_REQUEUE in codes or self.reason:
            saved = "" if EXIT_REQUEUE in codes else "; no checkpoint was confirmed in time"
            state = RunState.PREEMPTED if self.reason == "preempted" else RunState.REQUEUED
            code = EXIT_REQUEUE if EXIT_REQUEUE in codes else 143
            return self._outcome(state, code, f"stopped: {self.reason or 'signal'}{saved}")
        if self.lost:
            return self._outcome(RunState.REQUEUED, 143, "; ".join(self.lost))
        state = RunState.REQUEUED if self.retry_bugs else RunState.FAILED
        return self._outcome(state, EXIT_FAILED, self._error_words())

    def _outcome(self, state: RunState, exit_code: int, cause: str) -> Outcome:
        results = self.run.results() if state is RunState.SUCCEEDED else None
        return Outcome(state=state, exit_code=exit_code, cause=cause, started=self.started, ended=time.time(), results=results)

    def _error_words(self) -> str:
        """The first error that any rank or agent recorded, else the agents' exit codes."""
        for first in self.run.read_errors(self.number):
            return f"{first['who']}: {first['type']}: {first['message']}"
        return "; ".join(f"node {n}'s agent ended with {c}" for n, c in sorted(self.codes.items()) if c)

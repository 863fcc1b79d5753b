"""One attempt, whoever carries it: start an agent a node, carry stops, bury lost nodes, shrink, grow, conclude."""

import signal
import sys
import time

from cluster.config import Resources
from cluster.errors import EXIT_DONE, EXIT_FAILED, EXIT_NEVER_RETRY, EXIT_REQUEUE, EXIT_TERMINATED
from cluster.process.forking import Process
from cluster.run.directory import RunDir
from cluster.run.file_systems import Looks
from cluster.run.files import append_line, read_json_afresh
from cluster.run.key import RENDEZVOUS_KEY, new_key, write_private
from cluster.spec import Engine, Outcome, RunState, StopReason
from cluster.supervise.allocation import AGENTS, AgentSpec, Allocation, StoreSpec

POLL_SECONDS = 0.1
REPEAT_SECONDS = 1.0  # before a stop is said again, then twice as long each time: what is only just starting may not hear it
SETTLE_SECONDS = 5.0  # what a group may take to leave after one of its nodes has left for good
KILLED = 128 + signal.SIGKILL
ORPHAN_SECONDS = 3.0  # between two looks at the run on whose behalf this one exists
STOP = signal.SIGUSR2


class Attempt:
    """One attempt: the store, the agents, what became of them."""

    def __init__(
        self,
        run: RunDir,
        number: int,
        resources: Resources,
        allocation: Allocation,
        *,
        retry_bugs: bool,
        python: str = sys.executable,
    ) -> None:
        self.run, self.number, self.resources, self.allocation = run, number, resources, allocation
        self.retry_bugs, self.python = retry_bugs, python
        self.engine = Engine(run.record["engine"])
        self.elastic = resources.nodes.elastic and self.engine is Engine.RANKS
        self.folder = run.attempt_dir(number)
        self.agents: dict[int, Process] = {}
        self.codes: dict[int, int] = {}
        self.lost: list[str] = []
        self.leaving: set[int] = set()  # asked to go while the others stay
        self.store: Process | None = None
        self.rendezvous = ""
        self.started = time.time()
        self.reason = ""  # why the run was asked to stop
        self._next_look, self._request_looks = 0.0, Looks(run.path)
        self._next_words: dict[int, tuple[float, float]] = {}  # of agents that were asked to stop: when again, and the pause then

    def execute(self) -> Outcome:
        """Start everything, wait for its end, write down how it went."""
        self.run.make_folders(self.number)
        try:
            first = self.allocation.initial_nodes()
            if self.engine is Engine.RANKS:
                self._start_store()
            for node in first:
                self._start_agent(node, len(first))
            self._watch()
        finally:
            self._end_all()
        outcome = self._conclude()
        self.run.write_outcome(self.number, outcome)
        self.run.event("attempt_ended", attempt=self.number, state=outcome.state, cause=outcome.cause)
        return outcome

    # --- starting

    def _start_store(self) -> None:
        """Start the rendezvous store; agents wait for it, so that all import torch at the same time."""
        key = self.folder / RENDEZVOUS_KEY
        key.unlink(missing_ok=True)  # of whoever carried the attempt before, and came no further
        write_private(key, new_key())
        host, port = self.allocation.address(0), str(self.allocation.free_port())
        spec = StoreSpec(attempt=self.number, host=host, port=port, python=self.python)
        self.store = self.allocation.start_store(spec, self.folder / "logs" / "store.log")
        self.rendezvous = f"{host}:{port}"

    def _start_agent(self, node: int, present: int) -> None:
        self._next_words.pop(node, None)
        said = self.folder / "nodes" / f"node-{node}.json"
        said.unlink(missing_ok=True)  # of an agent that left earlier
        address = self.allocation.address(node)
        spec = AgentSpec(
            run_path=str(self.run.path),
            attempt=self.number,
            node=node,
            nodes=str(self.resources.nodes) if self.elastic else str(present),
            address=address,
            rendezvous=self.rendezvous,
            python=self.python,
        )
        self.agents[node] = self.allocation.start(node, spec, self.folder / "logs" / f"node-{node}.log")
        line = {"node": node, "address": address, "pid": self.agents[node].pid, "started": time.time()}
        append_line(self.folder / AGENTS, line)

    # --- watching

    def _watch(self) -> None:
        """Until every agent has left: carry stops, bury lost nodes, shrink, grow, or give up."""
        leave_by: float | None = None
        while self.agents:
            self._look_for_stop(asked=(looks := self._request_looks.due()))
            self._ask_to_leave()
            for node in [node for node, agent in self.agents.items() if agent.poll() is not None]:
                if not self._handle_agent_exit(node) and self.codes.get(node, EXIT_DONE) not in (EXIT_DONE, EXIT_REQUEUE):
                    leave_by = leave_by or time.monotonic() + SETTLE_SECONDS
            if looks:
                self._resize()
            if self.lost and not self._enough():
                leave_by = leave_by or time.monotonic()  # the others cannot go on without it
            if leave_by is not None and time.monotonic() >= leave_by:
                return
            time.sleep(POLL_SECONDS)

    def _handle_agent_exit(self, node: int) -> bool:
        """Find out how a node's agent ended; True if the others go on without it."""
        code = self.agents.pop(node).returncode
        said = read_json_afresh(self.folder / "nodes" / f"node-{node}.json")
        if said is None and node in self._next_words and code in (-STOP, 128 + STOP):
            said = {"exit_code": EXIT_REQUEUE}  # of our word to stop, before it could hear: it had nothing to save
        if said is None and (word := self.allocation.loss_reason(node, code)):
            self.lost.append(f"node {node} died ({word})")
            self.run.event("node_lost", node=node, address=self.allocation.address(node), signal=word, attempt=self.number)
            self.allocation.mark_lost(node)
            return True
        exit_code = int(said["exit_code"]) if said else code if code >= 0 else 128 - code
        if exit_code in (EXIT_REQUEUE, EXIT_TERMINATED) and self.elastic and self.agents and not self.reason:
            # a notice to this node alone, or ours to shrink: the others form a group without it
            self.run.event("node_left", node=node, attempt=self.number)
            (self.allocation.release if node in self.leaving else self.allocation.mark_lost)(node)
            self.leaving.discard(node)
            return True
        self.codes[node] = exit_code
        return False

    def _enough(self) -> bool:
        done = sum(code in (EXIT_DONE, EXIT_REQUEUE) for code in self.codes.values())
        return self.elastic and len(self.agents) + done >= self.resources.nodes.least

    def _resize(self) -> None:
        """An elastic run uses the nodes that it may have: fewer when one dies or is asked for, more when one is there."""
        if not self.elastic or self.reason or self.codes or not self.agents:
            return
        wanted = min(self.run.wanted_nodes or self.resources.nodes.most, self.resources.nodes.most)
        staying = [node for node in self.agents if node not in self.leaving]
        for node in sorted(staying)[max(wanted, self.resources.nodes.least) :]:
            self.leaving.add(node)
            self.run.event("node_asked_to_leave", node=node, attempt=self.number)
        for node in self.allocation.acquire(wanted - len(self.agents)):
            self.run.event("node_returned", node=node, attempt=self.number)
            self._start_agent(node, len(self.agents) + 1)

    def _look_for_stop(self, *, asked: bool) -> None:
        """Whether anybody wants the run to stop, and why; `asked`: look also whether a user does."""
        if not self.reason:
            cancelled = (asked and self.run.cancel_requested) or self._orphaned()
            notice = StopReason.CANCELLED if cancelled else self.allocation.stop_reason()
            self.reason = StopReason.CANCELLED if notice and self.run.cancel_requested else notice

    def _ask_to_leave(self) -> None:
        """Say it to all agents, or to those that are to go while the others stay; and again to whoever does not leave."""
        now = time.monotonic()
        for node in self.agents if self.reason else self.leaving & self.agents.keys():
            again, pause = self._next_words.get(node, (0.0, REPEAT_SECONDS))
            if now >= again:
                self._next_words[node] = (now + pause, 2 * pause)
                self.agents[node].send_signal(STOP)

    def _orphaned(self) -> bool:
        if time.monotonic() < self._next_look:
            return False
        self._next_look = time.monotonic() + ORPHAN_SECONDS
        return self.run.orphaned

    def _end_all(self) -> None:
        """Whatever is left of this attempt must not outlive it."""
        for agent in self.agents.values():
            self.allocation.end(agent)
        if self.store is not None:
            self.allocation.end(self.store)
        for node, agent in self.agents.items():
            code = agent.wait()
            self.codes.setdefault(node, code if code >= 0 else 128 - code)
        for node in self.codes:
            self.allocation.clean_up(node)

    # --- concluding

    def _conclude(self) -> Outcome:
        codes = set(self.codes.values())
        if EXIT_NEVER_RETRY in codes:
            return self._outcome(RunState.FAILED, EXIT_NEVER_RETRY, self._error_words())
        if codes == {EXIT_DONE} and (not self.lost or self.elastic):
            return self._outcome(RunState.SUCCEEDED, EXIT_DONE, "done")
        reason = self.reason or (self.allocation.stop_reason() if EXIT_FAILED not in codes else "")
        if not reason and codes & {EXIT_REQUEUE, EXIT_TERMINATED}:
            reason = self.allocation.query_stop_reason()
        if self.run.cancel_requested or reason == StopReason.CANCELLED:
            saved = "after saving" if EXIT_REQUEUE in codes else "before it had saved anything more"
            return self._outcome(RunState.CANCELLED, EXIT_REQUEUE, f"cancelled {saved}")
        if self.lost and not self.elastic:  # Slurm requeues such a job itself; but what the others saved is not the last step
            return self._outcome(RunState.REQUEUED, EXIT_TERMINATED, "; ".join(self.lost))
        if EXIT_REQUEUE in codes or reason:
            saved = "" if EXIT_REQUEUE in codes else "; no checkpoint was confirmed in time"
            state = RunState.PREEMPTED if reason == StopReason.PREEMPTED else RunState.REQUEUED
            code = EXIT_REQUEUE if EXIT_REQUEUE in codes else EXIT_TERMINATED
            return self._outcome(state, code, f"stopped: {reason or 'signal'}{saved}")
        if self.lost:
            return self._outcome(RunState.REQUEUED, EXIT_TERMINATED, "; ".join(self.lost))
        if KILLED in codes and EXIT_FAILED not in codes:  # from outside, as ranks may be: no bug
            node = next(n for n, code in sorted(self.codes.items()) if code == KILLED)
            return self._outcome(RunState.REQUEUED, EXIT_TERMINATED, f"node {node}: the job's process was killed (SIGKILL)")
        state = RunState.REQUEUED if self.retry_bugs else RunState.FAILED
        return self._outcome(state, EXIT_FAILED, self._error_words())

    def _outcome(self, state: RunState, exit_code: int, cause: str) -> Outcome:
        results = self.run.results() if state is RunState.SUCCEEDED else None
        return Outcome(state=state, exit_code=exit_code, cause=cause, started=self.started, ended=time.time(), results=results)

    def _error_words(self) -> str:
        """The first error that any rank or agent recorded, else the agents' exit codes."""
        for first in self.run.read_errors(self.number):
            return f"{first['who']}: {first['type']}: {first['message']}"
        return "; ".join(f"node {n}'s agent ended with {c}{self._last_words(n)}" for n, c in sorted(self.codes.items()) if c)

    def _last_words(self, node: int) -> str:
        """Of an agent that could not even start: a module, an image, a Python that is not there."""
        log = self.folder / "logs" / f"node-{node}.log"
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines()[-20:]] if log.exists() else []
        said = [line for line in lines if line and not line.startswith("srun: error:")]
        return f" ({said[-1][:300]})" if said else ""

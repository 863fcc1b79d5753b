"""One attempt in an allocation: start agents, forward stops, replace lost nodes, resize, and record the outcome."""

import logging
import math
import signal
import sys
import time
from dataclasses import replace
from typing import Any

from ropewalk.cluster.config import Resources
from ropewalk.cluster.errors import EXIT_DONE, EXIT_FAILED, EXIT_NEVER_RETRY, EXIT_REQUEUE, EXIT_TERMINATED, GateError
from ropewalk.cluster.fresh_reads import list_afresh, read_json_afresh
from ropewalk.cluster.process.forking import Process
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.event_log import STOPPED_UNSAVED
from ropewalk.cluster.run.fence import Fence
from ropewalk.cluster.run.file_systems import PollTimer
from ropewalk.cluster.run.files import append_line
from ropewalk.cluster.run.key import new_key, write_private
from ropewalk.cluster.run.mistakes import MISTAKE_REPEATED, repeats_mistake
from ropewalk.cluster.run.names import AGENTS, GROUP_KEY, LOGS, NODES
from ropewalk.cluster.run.node_ledger import Cause, record_failure, record_findings, record_gpu_failures
from ropewalk.cluster.spec import Engine, Outcome, RunState, StopReason
from ropewalk.cluster.supervise.allocation import AgentSpec, Allocation, GroupServerSpec
from ropewalk.cluster.supervise.outcome import AgentExit, Ending, classify, shell_code
from ropewalk.cluster.supervise.takeover import agent_starts, outlives_nodes

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
REPEAT_SECONDS = 1.0  # until a stop is sent again, doubled each time: an agent that is starting may miss the first one
SETTLE_SECONDS = 5.0  # for the group to exit after one of its nodes has failed, or after the grace period
ORPHAN_SECONDS = 3.0  # between two checks of the parent run
STOP = signal.SIGUSR2


class Attempt:
    """One attempt: its group server, its agents and their exit codes."""

    def __init__(
        self, run: RunDir, number: int, allocation: Allocation, *, retry_bugs: bool, python: str = sys.executable
    ) -> None:
        self.run, self.number, self.allocation = run, number, allocation
        self.resources: Resources = run.resources(number)
        self.retry_bugs, self.python = retry_bugs, python
        self.engine = Engine(run.record["engine"])
        self.elastic = outlives_nodes(run, number)
        self.folder = run.attempt_dir(number)
        self.agents: dict[int, Process] = {}
        self.codes: dict[int, int] = {}  # exit codes by node, without nodes that were lost or left while others went on
        self.lost: list[str] = []  # a sentence for each lost node
        self.leaving: set[int] = set()  # nodes that were asked to leave while the others go on
        self.group_server: Process | None = None
        self.started = min([started for _, started in agent_starts(run, number)] or [time.time()])
        self.reason = ""  # of the stop, once there is one
        self._stop_at: float | None = None  # monotonic time at which to stop before the time limit
        self._leave_by = math.inf  # monotonic time at which remaining agents are killed
        self._next_orphan_check, self._request_timer = 0.0, PollTimer(run.path)
        self._next_signals: dict[int, tuple[float, float]] = {}  # by node: time of the next stop signal, and the pause after it

    def execute(self) -> Outcome:
        """Start the agents, wait until all have exited, and record the outcome."""
        self.run.make_folders(self.number)
        try:
            first = self.allocation.initial_nodes()
            if self.resources.time_limit_minutes and not self.allocation.owner_limits_time:
                left = self.started + self.resources.time_limit_minutes * 60 - time.time()
                self._stop_at = time.monotonic() + left - self.resources.grace_seconds
            if self.engine is Engine.RANKS:
                self._start_group_server(len(first))
            for node in first:
                self._start_agent(node, len(first))
            self._watch()
            self.allocation.confirm()
        finally:
            self._end_all()
        outcome = self._conclude()
        hosts = {node: self.allocation.host(node) for node in self.codes}
        record_gpu_failures(self.run, self.number, set(hosts.values()))
        if self.resources.check_nodes:
            record_findings(self.run, self.number, hosts)
        self.run.write_outcome(self.number, outcome)
        self.run.event("attempt_ended", attempt=self.number, state=outcome.state, cause=outcome.cause)
        return outcome

    # --- starting

    def _start_group_server(self, present: int) -> None:
        """Start the group server without waiting for it; the agents import torch meanwhile."""
        if not self.allocation.survivors:
            key = self.folder / GROUP_KEY
            key.unlink(missing_ok=True)  # of a supervisor that died right after it had opened this attempt
            write_private(key, new_key())
        spec = GroupServerSpec(
            run_path=str(self.run.path),
            attempt=self.number,
            nodes=self._group_sizes(present),
            expected=self.allocation.survivors or present,
            host=self.allocation.server_host(),
            python=self.python,
        )
        self.group_server = self.allocation.start_group_server(spec, self.folder / LOGS / "groups.log")

    def _start_agent(self, node: int, present: int) -> None:
        """Start the agent of a node, unless one of this attempt runs there."""
        self._next_signals.pop(node, None)
        if (running := self.allocation.running_agent(node)) is not None:
            self.agents[node] = running
            return
        (self.folder / NODES / f"node-{node}.json").unlink(missing_ok=True)  # report of the node's previous agent
        address = self.allocation.address(node)
        spec = AgentSpec(
            run_path=str(self.run.path),
            attempt=self.number,
            node=node,
            nodes=self._group_sizes(present),
            address=address,
            python=self.python,
        )
        self.agents[node] = self.allocation.start(node, spec, self.folder / LOGS / f"node-{node}.log")
        line = {"node": node, "address": address, "pid": self.agents[node].pid, "started": time.time()}
        append_line(self.folder / AGENTS, line)

    def _group_sizes(self, present: int) -> str:
        return str(self.resources.nodes) if self.elastic else str(present)

    # --- watching

    def _watch(self) -> None:
        """Forward stops, handle exits and resize, until every agent has exited or the remaining ones have to be killed."""
        while self.agents:
            self._check_stop(check_requests=(requests_due := self._request_timer.due()))
            self._signal_stop()
            for node in [node for node, agent in self.agents.items() if agent.poll() is not None]:
                if self._handle_agent_exit(node) is AgentExit.FAILED:
                    self._leave_within(SETTLE_SECONDS)
            if requests_due:
                self._resize()
            if self.lost and not self._enough_nodes():
                self._leave_within(0.0)  # the other nodes cannot go on without the lost one
            if time.monotonic() >= self._leave_by:
                log.info("killing the agents of nodes %s, which did not exit in time", sorted(self.agents))
                return
            time.sleep(POLL_SECONDS)

    def _leave_within(self, seconds: float) -> None:
        self._leave_by = min(self._leave_by, time.monotonic() + seconds)

    def _handle_agent_exit(self, node: int) -> AgentExit:
        """Record the end of a node's agent, and classify it."""
        returncode = self.agents.pop(node).returncode
        report = self._report(node)
        if report is None and node in self._next_signals and returncode in (-STOP, 128 + STOP):
            code = EXIT_REQUEUE  # the stop signal killed it before it had a handler: there was nothing to save
        elif report is None and (reason := self.allocation.loss_reason(node, returncode)):
            self.lost.append(f"node {node} died ({reason})")
            self.run.event("node_lost", node=node, address=self.allocation.address(node), signal=reason, attempt=self.number)
            if self.allocation.machine_failed(node):
                record_failure(self.run, self.number, self.allocation.host(node), Cause.DOWN)
            self.allocation.mark_lost(node)
            return AgentExit.LOST
        else:
            code = int(report["exit_code"]) if report else shell_code(returncode)
        if code in (EXIT_REQUEUE, EXIT_TERMINATED) and self.elastic and self.agents and not self.reason:
            # only this node was taken back, or it was asked to leave: the others form a group without it
            self.run.event("node_left", node=node, attempt=self.number)
            (self.allocation.release if node in self.leaving else self.allocation.mark_lost)(node)
            self.leaving.discard(node)
            return AgentExit.LEFT
        if report and report.get("nothing_ran") and self.agents:  # the ranks of other nodes may wait for ranks of this one
            self.run.event("node_left_early", node=node, attempt=self.number)
        self.codes[node] = code
        return AgentExit.FINISHED if code in (EXIT_DONE, EXIT_REQUEUE) else AgentExit.FAILED

    def _report(self, node: int) -> dict[str, Any] | None:
        """Read the report of a node's agent; None if the agent was killed before it wrote one."""
        return read_json_afresh(self.folder / NODES / f"node-{node}.json")

    def _enough_nodes(self) -> bool:
        done = sum(code in (EXIT_DONE, EXIT_REQUEUE) for code in self.codes.values())
        return self.elastic and len(self.agents) + done >= self.resources.nodes.least

    def _resize(self) -> None:
        """Ask nodes to leave if a user requested fewer, and start agents on nodes that can join, or replace lost ones."""
        if not self.elastic or self.reason or self.codes or not self.agents:
            return
        wanted = self.resources.wanted_nodes(self.run.wanted_nodes)
        staying = [node for node in self.agents if node not in self.leaving]
        for node in sorted(staying)[wanted:]:
            self.leaving.add(node)
            self.run.event("node_asked_to_leave", node=node, attempt=self.number)
        for node in self.allocation.acquire(wanted - len(self.agents)):
            if self.allocation.running_agent(node) is None:
                self.run.event("node_returned", node=node, attempt=self.number)
            self._start_agent(node, len(self.agents) + 1)

    def _check_stop(self, *, check_requests: bool) -> None:
        """Set `reason` if the run has to stop; `check_requests`: also read the file of user requests."""
        if not self.reason:
            cancelled = (check_requests and self.run.cancel_requested) or self._is_orphaned()
            reason = StopReason.CANCELLED if cancelled else self._scheduler_reason()
            self.reason = StopReason.CANCELLED if reason and self.run.cancel_requested else reason
            if self.reason:  # the scheduler's grace period starts now, even if a signal reaches an agent late
                self._leave_within(self.resources.grace_seconds + SETTLE_SECONDS)

    def _scheduler_reason(self) -> str:
        if self._stop_at is not None and time.monotonic() > self._stop_at:
            return StopReason.TIME_LIMIT
        return self.allocation.stop_reason()

    def _signal_stop(self) -> None:
        """Signal all agents to stop, or only the `leaving` ones, and repeat the signal until they exit."""
        now = time.monotonic()
        for node in self.agents if self.reason else self.leaving & self.agents.keys():
            due, pause = self._next_signals.get(node, (0.0, REPEAT_SECONDS))
            if now >= due:
                self._next_signals[node] = (now + pause, 2 * pause)
                self.agents[node].send_signal(STOP)

    def _is_orphaned(self) -> bool:
        if time.monotonic() < self._next_orphan_check:
            return False
        self._next_orphan_check = time.monotonic() + ORPHAN_SECONDS
        return self.run.orphaned

    def _end_all(self) -> None:
        for agent in self.agents.values():
            self.allocation.end(agent)
        if self.group_server is not None:
            self.allocation.end(self.group_server)
        for node, agent in self.agents.items():
            returncode, report = agent.wait(), self._report(node)  # it may have reported, and waited for a sidecar
            self.codes.setdefault(node, int(report["exit_code"]) if report else shell_code(returncode))
        for node in self.codes:
            self.allocation.clean_up(node)

    # --- concluding

    def _conclude(self) -> Outcome:
        end = Ending(
            codes=self.codes,
            lost=self.lost,
            reason=self.reason,
            cancelled=self.run.cancel_requested,
            elastic=self.elastic,
            retry_bugs=self.retry_bugs and not bugs_spent(self.run, self.number) and not self._repeats_mistake(),
            unsaved=EXIT_REQUEUE in self.codes.values() and stopped_unsaved(self.run, self.number),
            has_checkpoints=self.run.record.get("checkpoints", True),
        )
        verdict = classify(end if end.is_decided or self.reason else replace(end, reason=self._late_stop_reason()))
        state = RunState.REFUSED if verdict.exit_code == EXIT_NEVER_RETRY and self._failed_gate() else verdict.state
        return Outcome(
            state=state,
            exit_code=verdict.exit_code,
            cause=verdict.cause or self._first_error(),
            started=self.started,
            ended=time.time(),
            results=self.run.results() if state in {RunState.SUCCEEDED, RunState.REFUSED} else None,
        )

    def _repeats_mistake(self) -> bool:
        failed = EXIT_FAILED in self.codes.values() and not self.reason
        repeated = failed and repeats_mistake(self.run, self.number)
        if repeated:
            self.run.event(MISTAKE_REPEATED, attempt=self.number)
        return repeated

    def _failed_gate(self) -> bool:
        """Return True if the attempt ended because a score did not meet `require`."""
        return any(first["type"] == GateError.__name__ for first in self.run.read_errors(self.number)[:1])

    def _late_stop_reason(self) -> str:
        """Ask the scheduler why agents stopped without a signal from this process; empty if it gives no reason."""
        codes = set(self.codes.values())
        reason = self._scheduler_reason() if EXIT_FAILED not in codes else ""
        return reason or (self.allocation.query_stop_reason() if codes & {EXIT_REQUEUE, EXIT_TERMINATED} else "")

    def _first_error(self) -> str:
        """Return the decisive error that a rank or agent recorded, else the agents' exit codes."""
        for first in self.run.read_errors(self.number):
            return f"{first['who']}: {first['type']}: {first['message']}"
        return "; ".join(f"node {n}'s agent exited with {c}{self._last_line(n)}" for n, c in sorted(self.codes.items()) if c)

    def _last_line(self, node: int) -> str:
        """Return the last line of an agent's log in parentheses: the reason if an agent could not start, such as no Python."""
        log = self.folder / LOGS / f"node-{node}.log"
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines()[-20:]] if log.exists() else []
        lines = [line for line in lines if line and not line.startswith("srun: error:")]
        return f" ({lines[-1][:300]})" if lines else ""


def bugs_spent(run: RunDir, number: int) -> bool:
    """Return True if an agent of the attempt has already used up `retries.bugs` within the attempt."""
    folder = run.attempt_dir(number) / NODES
    reports = [read_json_afresh(folder / name) for name in list_afresh(folder) if name.endswith(".json")]
    return any(report and report.get("bugs_spent") for report in reports)


def stopped_unsaved(run: RunDir, number: int) -> bool:
    """Return True if a program of the attempt's newest group exited after a stop without saving.

    A program saves by committing a checkpoint after the stop, or by exiting with 85.
    """
    events: list[dict[str, Any]] = []
    stop_requested = False
    for event in run.read_events(afresh=True):
        if event.get("attempt") != number:
            continue
        stop_requested |= event["event"] == "stop_requested"
        if stop_requested and event["event"] == "checkpoint":
            return False
        if event["event"] == STOPPED_UNSAVED:
            events.append(event)
    return any(not Fence(run, number, int(event.get("group") or 0)).has_successor() for event in events)

"""Checks of the state after steps, and the response to what they find: events, blame, the ledger of machines."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ropewalk.cluster.errors import CorruptionError
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.node_ledger import Cause, record_failure
from ropewalk.jobs.training.loop.batch import Batch
from ropewalk.jobs.training.loop.integrity.replay import Replay
from ropewalk.jobs.training.loop.integrity.verdict import ROW, Finding, RankState, damaged_copies, judge, replicas
from ropewalk.jobs.training.loop.report.report import Report
from ropewalk.jobs.training.loop.update.digests import PARTS, StateDigests
from ropewalk.jobs.training.loop.update.step import StepStats
from ropewalk.sharding.checkpoints.checkpoint import Checkpoints
from ropewalk.sharding.group import Group

MOST_RETURNS = 5  # to a step, until the attempt ends
EXCLUDED_FINDINGS = 2  # by which a machine is to be avoided
EVENTS = ("corruption", "corruption_blamed")


@dataclass(kw_only=True)
class Integrity:
    """The checks of one group. All ranks call every method together; those that return a bool say whether the state is right."""

    every_steps: int
    excludes: bool  # enter machines into the ledger
    group: Group
    digests: StateDigests
    checkpoints: Checkpoints
    report: Report
    context: JobContext
    hosts: Sequence[str]  # by rank; on rank 0
    replay: Replay | None  # None: computations are not checked
    batch: Batch | None = field(default=None, init=False)  # this rank's samples of the newest step
    verified: int = field(default=0, init=False)  # newest step whose state passed a check
    _loaded: int = field(default=0, init=False)  # step whose state was loaded last
    _since: int = field(default=0, init=False)  # step after which the history of digests begins
    _checked: int | None = field(default=None, init=False)
    _returns: Counter[int] = field(default_factory=Counter, init=False)  # by the step that the run went back to
    _disputed: tuple[int, dict[int, tuple[int, ...]]] | None = field(default=None, init=False)  # step, digests by rank
    _redone: set[int] = field(default_factory=set, init=False)  # steps that were not normal, and are computed once more

    def __post_init__(self) -> None:
        self._replicas = replicas(self.group.mesh)
        events = self.context.run.read_events() if self.group.is_main else []
        self._findings = Counter(event.get("host") for event in events if event["event"] in EVENTS)

    def due(self, step: int) -> bool:
        """Return True if the state after a step is checked, whether or not it is saved."""
        return step % self.every_steps == 0 or (self._disputed is not None and step == self._disputed[0])

    def check(self, step: int) -> bool:
        """Check the current state, that after `step`, the newest copy in memory, and that the ranks compute the same."""
        if self._checked == step:
            return True
        ranks = self._exchange(copies=True)
        self._report(step, damaged_copies(ranks))
        if self._corrupted(step, ranks) or self._computes_wrongly(step):
            return False
        self._checked = self._since = self.verified = step
        self.digests.start_history()
        self._redone = {each for each in self._redone if each > step}
        return True

    def passes(self, stats: StepStats) -> bool:
        """Look at the figures of a step: did the state change at rest before its update? Did an anomaly not repeat?"""
        if stats.changed:
            self._corrupted(stats.step, self._exchange())
            # what was saved after the step before may have the change
            self.verified = min(self.verified, max(stats.step - 2, self._loaded))
            return False
        if stats.applied and stats.step in self._redone:
            self._redone.discard(stats.step)
            self._report(stats.step, [Finding("loss or gradient", None)])
        if not self._replicas and self.digests.at_rest:
            self.verified = max(self.verified, stats.step - 1)
        return True

    def confirms(self, stats: StepStats, problem: str) -> bool:
        """Return True if an anomaly is due to samples or model: no state is corrupted, and it is the same in the redone step."""
        if self._corrupted(stats.step - 1, self._exchange()) or self._computes_wrongly(stats.step):
            return False
        if stats.step in self._redone:
            return True
        self._redone.add(stats.step)
        self.report.event("anomaly", step=stats.step, problem=problem, policy="redo", loss=str(stats.loss))
        return False

    def restored(self, step: int) -> None:
        """Note that a state was loaded: that after `step`."""
        self.digests.restart()
        self.verified, self._loaded, self._since, self._checked = step, step, step, None
        if self._disputed is not None and self._disputed[0] == step:
            self._settle_dispute(step, self._exchange())

    def count_return(self) -> None:
        """Count that the run goes back. Raises CorruptionError if it does not get on."""
        self._returns[self.verified] += 1
        if self._returns[self.verified] > MOST_RETURNS:
            hosts = ", ".join(str(host) for host, _ in self._findings.most_common() if host) or "unknown"
            raise CorruptionError(
                f"the state after step {self.verified} was restored {MOST_RETURNS} times, and the following ones were corrupted"
                f" again; machines with findings: {hosts}; resume without them"
            )

    def _exchange(self, *, copies: bool = False) -> list[RankState]:
        """Return what each rank finds now, by rank."""
        device = self.group.device
        table = torch.zeros(self.group.world_size, ROW, dtype=torch.int64, device=device)
        row = table[self.group.rank]
        row[: len(PARTS)] = self.digests.compare()
        row[len(PARTS) : -1] = self.digests.changed
        row[-1] = self.checkpoints.damaged_copies() if copies else 0
        return [RankState.of(each) for each in self.group.all_reduce_sum(table).tolist()]

    def _corrupted(self, step: int, ranks: list[RankState]) -> bool:
        """Report corrupted state, and note a dispute between copies of the model that the redone steps will settle."""
        findings = judge(ranks, self._replicas)
        self._report(step, findings)
        if disputed := [each.candidates for each in findings if each.candidates]:
            self._disputed = self._first_difference(step, ranks, disputed)
        elif not findings and self._disputed is not None and step == self._disputed[0]:
            self._settle_dispute(step, ranks)
        return bool(findings)

    def _first_difference(
        self, step: int, ranks: list[RankState], groups: list[tuple[int, ...]]
    ) -> tuple[int, dict[int, tuple[int, ...]]]:
        """Return the first step after which ranks of a group differed, and their digests then.

        Later ones say nothing: by gradients that are summed over all ranks a corrupted state has changed the others too.
        """
        device, history = self.group.device, self.digests.history[1:]
        updates = torch.zeros(self.group.world_size, len(history), len(PARTS), dtype=torch.int64, device=device)
        if history:
            updates[self.group.rank] = torch.stack(history)
            for number, digests in enumerate(self.group.all_reduce_sum(updates).transpose(0, 1).tolist(), 1):
                for group in groups:
                    if len({tuple(digests[rank]) for rank in group}) > 1:
                        return self._since + number, {rank: tuple(digests[rank]) for rank in group}
        return step, {rank: ranks[rank].digests for rank in groups[0]}

    def _computes_wrongly(self, step: int) -> bool:
        """Report ranks that compute other outputs than the rest for the same samples."""
        if self.replay is None or self.batch is None:
            return False
        findings = self.replay.findings(self.batch)
        self._report(step, findings)
        return bool(findings)

    def _settle_dispute(self, step: int, ranks: list[RankState]) -> None:
        """Blame the ranks whose state was not the one that the redone steps have led to."""
        assert self._disputed is not None
        disputed, self._disputed = self._disputed[1], None
        wrong = [rank for rank, digests in disputed.items() if digests != ranks[rank].digests]
        decided = len(wrong) < len(disputed)
        for rank in wrong if decided else [None]:
            self._event("corruption_blamed", step, rank)

    def _report(self, step: int, findings: Sequence[Finding]) -> None:
        for each in findings:
            self._event("corruption", step, each.rank, what=each.what, candidates=list(each.candidates), verified=self.verified)

    def _event(self, kind: str, step: int, rank: int | None, **fields: Any) -> None:
        """Report an event, and enter a machine with several findings into the ledger."""
        if not self.group.is_main:
            return
        host = self.hosts[rank] if rank is not None else None
        self.report.event(kind, step=step, rank=rank, host=host, **fields)
        if host is None:
            return
        self._findings[host] += 1
        if self.excludes and self._findings[host] >= EXCLUDED_FINDINGS:
            record_failure(self.context.run, self.context.attempt, host, Cause.CORRUPTION)

"""The account of a run's time: a pure function, on histories whose truth is known because they were generated."""

import math
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ropewalk.cluster.run.heartbeat import Heart, read_totals
from ropewalk.cluster.run.phase_clock import Phase, PhaseClock, TimeClass
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.results.goodput import COUNTED, AttemptTimes, Counted, Goodput, History, account
from ropewalk.jobs.training.loop.report import time_account

T = TimeClass
SAVE_EVERY = 5


class Simulated:
    """A run on a clock that only moves when it is told to, with the files that it would leave, and the truth."""

    def __init__(self, *, keep_lines: int) -> None:
        self.now = 1000.0
        self.truth: dict[TimeClass, float] = defaultdict(float)
        self.attempts: list[AttemptTimes] = []
        self.events: list[dict[str, object]] = []
        self.counted: list[Counted] = []
        self._keep_lines, self._lines = keep_lines, 0
        self._steps: list[float] = []  # seconds of the steps that count
        self._saved, self._saved_seconds = 0, 0.0
        self.clock = PhaseClock(lambda: self.now)
        self.retry = self.recovering = False

    def history(self) -> History:
        return History(1000.0, self.attempts, self.events, self.counted)

    def spend(self, name: TimeClass, seconds: float) -> None:
        self.truth[name] += seconds
        self.now += seconds

    def begin_attempt(self, opened_by: str, queued: float) -> None:
        self.attempts.append(AttemptTimes(len(self.attempts) + 1, self.now, opened_by, [], None))
        self.retry = opened_by == "retry"
        self.spend(T.RECOVERING if self.retry else T.QUEUED, queued)
        self._replace(agents=[(self.now, 0), (self.now, 1)])

    def _replace(self, **changes: object) -> None:
        self.attempts[-1] = AttemptTimes(**{**vars(self.attempts[-1]), **changes})

    def event(self, kind: str, **fields: object) -> None:
        self.events.append({"event": kind, "time": self.now, "attempt": len(self.attempts), **fields})

    def begin_group(self, starting: float, loading: float, *, again: bool) -> None:
        recovering = self.recovering = again or self.retry
        self.spend(T.RECOVERING if recovering else T.STARTING, starting)
        self.event("group_formed", nodes=2)
        self.clock = PhaseClock(lambda: self.now)
        self.clock.enter(Phase.LOADING)
        earlier = account(self.history(), self.now)
        self.spend(T.RECOVERING if recovering else T.LOADING, loading)
        self.clock.begin(earlier.seconds, recovering=recovering)
        undone = math.fsum(self._steps[self._saved :])
        self.truth[T.REDONE] += undone
        self.truth[T.TRAINING] -= undone
        del self._steps[self._saved :]
        self.clock.set_training(self._saved_seconds)
        self._count()

    def _count(self) -> None:
        plain = Goodput(self.clock.seconds).plain()["seconds"]
        double = {name: 2 * seconds for name, seconds in plain.items()}
        self.event(COUNTED, seconds=plain, node_seconds=double, nodes=2, now=self.clock.name.value)
        self.counted.append(Counted(self.clock.seconds, self.clock.name))

    def step(self, data: float, seconds: float, validation: float, save: float) -> None:
        self.clock.enter(Phase.DATA)
        self.spend(T.RECOVERING if self.recovering else T.DATA, data)
        self.recovering = False
        self.clock.enter(Phase.STEP)
        self.spend(T.TRAINING, seconds)
        self._steps.append(seconds)
        self._lines += 1
        if self._lines % self._keep_lines == 0:
            self.counted.append(Counted(self.clock.seconds))
        if validation:
            self.clock.enter(Phase.VALIDATION)
            self.spend(T.VALIDATING, validation)
        if len(self._steps) % SAVE_EVERY == 0:
            self.clock.enter(Phase.CHECKPOINT)
            self._saved, self._saved_seconds = len(self._steps), self.clock.seconds[T.TRAINING]
            self.spend(T.SAVING, save)
        self.clock.enter(Phase.STEP)  # the next batch is there

    def lose(self, within: float, hung: float) -> None:
        """Lose the group within a step, or have it hang there first; the agent has sampled the last heartbeat."""
        self.counted.append(Counted(self.clock.seconds, self.clock.name))
        self.spend(T.TRAINING, within)
        self._steps.append(within)
        if hung:
            self.spend(T.SLOW, hung)
            self.event("ranks_hung", seconds=hung / 2, since=self.now - hung)  # half of it the agent itself had no core
        else:
            self.event("rank_lost", rank=1)

    def end(self, state: RunState, code: int, leaving: float, *, counted: bool) -> None:
        if counted:
            self.clock.split()
            self._count()
        self.clock.enter(Phase.LEAVING)
        self.spend(T.STOPPED, leaving)
        self._replace(outcome=Outcome(state=state, exit_code=code, cause="", ended=self.now))


some, few = st.floats(0.01, 50.0), st.floats(0.0, 0.3)


HISTORIES = given(data=st.data(), keep_lines=st.sampled_from([1, 1, 3, 1000]))


@settings(max_examples=60, deadline=None)
@HISTORIES
def test_seconds_sum_to_the_span_and_equal_the_truth(data: st.DataObject, keep_lines: int) -> None:
    account_for_a_history(data, keep_lines)


@pytest.mark.soak("five times as many histories; make test runs test_seconds_sum_to_the_span_and_equal_the_truth")
@settings(max_examples=300, deadline=None)
@HISTORIES
def test_seconds_of_many_histories(data: st.DataObject, keep_lines: int) -> None:
    account_for_a_history(data, keep_lines)


def account_for_a_history(data: st.DataObject, keep_lines: int) -> None:
    run = Simulated(keep_lines=keep_lines)
    draw = data.draw
    ways = draw(st.lists(st.sampled_from(["requeue", "retry", "resume"]), max_size=3))
    for number, opened_by in enumerate(["submission", *ways]):
        if opened_by == "resume":
            run.spend(T.STOPPED, draw(some))
        elif opened_by == "requeue":
            run.spend(T.QUEUED, draw(some))
        run.begin_attempt({"resume": "submission"}.get(opened_by, opened_by), draw(some))
        losses = draw(st.integers(0, 2))
        for group in range(losses + 1):
            run.begin_group(draw(some), draw(some), again=group > 0)
            for _ in range(draw(st.integers(int(group < losses), 12))):
                run.step(draw(few), draw(st.floats(0.5, 0.9)), draw(st.sampled_from([0.0, 0.0, 2.5])), draw(few))
            if group < losses:
                run.lose(draw(few), draw(st.sampled_from([0.0, 0.0, 20.0])))
        following = [*ways, ""][number]
        state = {"requeue": RunState.PREEMPTED, "retry": RunState.REQUEUED, "resume": RunState.CANCELLED, "": RunState.SUCCEEDED}
        run.end(state[following], 0 if following == "" else 85, draw(few), counted=True)
    goodput = account(run.history(), run.now)
    _check(goodput, run)


def _check(goodput: Goodput, run: Simulated) -> None:
    assert sum(goodput.seconds.values()) == pytest.approx(run.now - 1000.0, rel=1e-9)
    for name in T:
        assert goodput.seconds.get(name, 0.0) == pytest.approx(run.truth[name], abs=1e-6), name
    held = {name: 2 * seconds for name, seconds in run.truth.items() if name not in (T.QUEUED, T.STOPPED)}
    for name, seconds in held.items():
        assert goodput.node_seconds.get(name, 0.0) == pytest.approx(seconds, abs=0.05), name


@pytest.mark.parametrize("copied_after", [0.0, 0.3])  # seconds of each step, in which it then waits for a copy
def test_a_slow_step_is_training_only_as_far_as_steps_usually_take(copied_after: float) -> None:
    now = 0.0
    clock = PhaseClock(lambda: now)
    for seconds in (*[0.5] * 20, 4.5, 0.5, 0.9):
        clock.enter(Phase.STEP)
        now += copied_after
        clock.enter(Phase.CHECKPOINT)
        clock.enter(Phase.STEP)
        now += seconds - copied_after
        clock.enter(Phase.DATA)
    assert clock.seconds[T.SLOW] == pytest.approx(4.0)
    assert clock.seconds[T.TRAINING] == pytest.approx(11.9)


def test_nodes_beyond_a_group_are_spare_until_one_takes_the_place_of_a_lost_one() -> None:
    ended = Outcome(state=RunState.SUCCEEDED, exit_code=0, cause="done", ended=50.0)
    events = [
        {"event": "group_formed", "time": 10.0, "attempt": 1, "nodes": 2},
        {"event": "first_step", "time": 12.0},
        {"event": "node_lost", "time": 20.0, "node": 0},
        {"event": "group_formed", "time": 21.0, "attempt": 1, "nodes": 2},
        {"event": "first_step", "time": 22.0},
    ]
    attempt = AttemptTimes(1, 0.0, "submission", [(5.0, 0), (5.0, 1), (5.0, 2), (40.0, 0)], ended)
    node_seconds = account(History(0.0, [attempt], events, spare_nodes=1), 60.0).node_seconds
    assert node_seconds == {
        T.STARTING: 3 * 5.0 + 2 * 2.0,
        T.TRAINING: 2 * (8.0 + 28.0),
        T.RECOVERING: 2 * 2.0,
        T.SPARE: 10.0 + 10.0,
    }


def test_programs_of_ones_own_have_classes_from_attempts_and_events() -> None:
    attempts = [
        AttemptTimes(1, 0.0, "submission", [(60.0, 0)], Outcome(state=RunState.PREEMPTED, exit_code=85, cause="", ended=200.0)),
        AttemptTimes(2, 230.0, "requeue", [(230.0, 0)], Outcome(state=RunState.SUCCEEDED, exit_code=0, cause="", ended=300.0)),
    ]
    events = [
        {"event": "group_formed", "attempt": 1, "time": 62.0},
        {"event": "rank_lost", "attempt": 1, "time": 100.0},
        {"event": "group_formed", "attempt": 1, "time": 104.0},
        {"event": "group_formed", "attempt": 2, "time": 233.0},
    ]
    goodput = account(History(0.0, attempts, events, trains=False), 300.0)
    assert goodput.seconds == {T.QUEUED: 90.0, T.STARTING: 5.0, T.RECOVERING: 4.0, T.RUNNING: 201.0}
    assert goodput.node_seconds == {T.STARTING: 5.0, T.RECOVERING: 4.0, T.RUNNING: 201.0}
    assert goodput.share == pytest.approx(201 / 210)


def test_a_run_of_an_earlier_version_has_no_counters_and_still_sums_up() -> None:
    attempt = AttemptTimes(1, 10.0, "submission", [(20.0, 0)], None)
    events = [{"event": "first_step", "attempt": 1, "time": 40.0}]
    assert account(History(10.0, [attempt], events), 100.0).seconds == {T.QUEUED: 10.0, T.STARTING: 20.0, T.TRAINING: 60.0}


def test_agents_read_what_rank_0_has_counted(tmp_path: Path) -> None:
    heart = Heart(tmp_path / "heart", 1, 60.0)
    heart.begin(60.0)
    assert read_totals(tmp_path / "heart") is None, "it does not yet know the time before it"
    heart.phases.begin({T.QUEUED: 7.0}, recovering=False)
    heart.beat(Phase.STEP, 1)
    totals = read_totals(tmp_path / "heart")
    assert totals is not None
    assert totals["queued"] == 7.0
    assert set(totals) == {"queued", "loading"}
    Heart(tmp_path / "heart", 2, 60.0).begin(60.0)
    assert read_totals(tmp_path / "heart") is None, "of the group before"


def test_rank_0_loses_no_time_in_which_it_reads_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0

    def read(*_: Any, **__: Any) -> History:
        nonlocal now
        now += 5.0
        return History(970.0, [AttemptTimes(1, 970.0, "submission", [(980.0, 0)], None)], ())

    monkeypatch.setattr(time_account, "read_history", read)
    monkeypatch.setattr(time_account.time, "time", lambda: now)
    heart = Heart(None, clock=lambda: now)
    heart.begin(60.0)
    context: Any = SimpleNamespace(heart=heart, run=None, group=1)
    assert time_account.TimeAccount(context).record()["seconds"] == {"queued": 10.0, "starting": 20.0, "loading": 5.0}


def test_what_a_killed_rank_0_had_counted_is_read_from_its_heartbeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    killed = Heart(tmp_path / "heart", 1, 60.0, clock=lambda: now)
    killed.begin(60.0)
    killed.phases.begin({T.QUEUED: 10.0}, recovering=False)
    for phase in (Phase.DATA, Phase.VALIDATION, Phase.CHECKPOINT, Phase.STEP):
        now += 1.0
        killed.beat(phase)
    history = History(990.0, [AttemptTimes(1, 990.0, "submission", [], None)], [{"event": "rank_lost", "time": now + 0.5}])
    now += 3.0
    monkeypatch.setattr(time_account, "read_history", lambda *_, **__: history)
    monkeypatch.setattr(time_account.time, "time", lambda: now)
    heart = Heart(tmp_path / "heart", 2, 60.0, clock=lambda: now)
    heart.begin(60.0)
    context: Any = SimpleNamespace(heart=heart, run=SimpleNamespace(resources=lambda _: None), attempt=1, group=2, world_size=1)
    seconds = time_account.TimeAccount(context).record()["seconds"]
    second = dict.fromkeys((T.LOADING, T.DATA, T.VALIDATING, T.SAVING), 1.0)
    assert seconds == {T.QUEUED: 10.0, **second, T.TRAINING: 0.5, T.RECOVERING: 2.5}

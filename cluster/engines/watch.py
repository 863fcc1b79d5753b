"""Heartbeats and samples of the ranks of one node: time limits that are exceeded, and ranks that cause it."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ropewalk.cluster.engines.activity import Activity, RankProcess, RankSample, activity, stop_marker
from ropewalk.cluster.engines.stacks import Stack
from ropewalk.cluster.run.heartbeat import Beat, read_beat
from ropewalk.cluster.run.phase_clock import Phase

LONGEST_PAUSE_SECONDS = 0.25  # between two reads of heartbeats; in the rest of a longer pause this agent was suspended
LEAST_SILENCE_SECONDS = 0.05  # before a rank is checked for a stop
STOPPED_SECONDS = 0.5  # after which a stopped rank is replaced: whoever stops this node's processes one by one takes less
# Shares of the time after which sleeping ranks count as hung: before the first sample, and between two samples.
FIRST_SAMPLE, SAMPLE_INTERVAL = 0.15, 0.2


@dataclass
class _Silence:
    """Time and samples of a rank since its newest heartbeat. All times are in seconds in which this agent was running."""

    beat: Beat
    since: float
    active_at: float  # of the newest sample that shows the rank active; at first that of the heartbeat
    stop_marker: str | None = None
    stopped_since: float = math.inf
    sample: RankSample | None = None
    sampled_at: float = -math.inf
    activity: Activity | None = None  # between the newest two samples
    wall_time: float = field(default_factory=time.time)  # when this agent saw the heartbeat, in seconds since the epoch


class Watch:
    """Heartbeats and samples of one node's ranks. Time in which this process was suspended does not count.

    Call `read` periodically, and `add` with samples taken whenever `wants_samples` is true.
    """

    def __init__(
        self, ranks: Mapping[int, RankProcess], group: int, world_size: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.ranks, self._group, self._world_size, self._clock = ranks, group, world_size, clock
        self._silences: dict[int, _Silence] = {}
        self._spare: set[int] = set()  # ranks without work, which are not watched
        self._now, self._read_at, self._added_at = 0.0, clock(), -math.inf
        self.leniency = 1.0  # factor of all time limits

    @property
    def beats(self) -> dict[int, Beat]:
        """Newest heartbeat by rank."""
        return {rank: silence.beat for rank, silence in self._silences.items()}

    def read(self) -> None:
        now = self._clock()
        self._now += min(now - self._read_at, LONGEST_PAUSE_SECONDS)
        self._read_at = now
        for rank, process in self.ranks.items():
            beat = read_beat(process.heartbeat)
            if beat is None or beat.group != self._group:
                continue
            if beat.phase is Phase.SPARE:
                self._spare.add(rank)
                self._silences.pop(rank, None)
            elif rank not in self._silences or self._silences[rank].beat.number != beat.number:
                self._silences[rank] = _Silence(beat, self._now, self._now)

    def seconds_since_beat(self, rank: int) -> float:
        return self._now - self._silences[rank].since

    def beat_wall_time(self, rank: int) -> float:
        """Return when this agent saw the newest heartbeat of a rank, in seconds since the epoch."""
        return self._silences[rank].wall_time

    def stack(self, rank: int) -> Stack:
        """Return the stack of a rank in its newest sample."""
        sample = self._silences[rank].sample
        assert sample is not None, "called for slow ranks, which have samples"
        return sample.rank.stack

    @property
    def silent_seconds(self) -> float:
        """Seconds in which no rank of this node has sent a heartbeat."""
        return min((self.seconds_since_beat(rank) for rank in self._silences), default=0.0)

    @property
    def asleep_seconds(self) -> float:
        """Seconds after which sleeping ranks count as hung: infinite while a rank is in a phase that may take long."""
        return self.leniency * max((beat.asleep_seconds for beat in self.beats.values()), default=math.inf)

    @property
    def wants_samples(self) -> bool:
        limit = self.asleep_seconds
        return self.silent_seconds > FIRST_SAMPLE * limit and self._now - self._added_at > SAMPLE_INTERVAL * limit

    def add(self, samples: Mapping[int, RankSample], beats: Mapping[int, Beat]) -> None:
        """Add samples that were taken since the heartbeats `beats`."""
        self._added_at = self._now
        for rank, sample in samples.items():
            if rank not in beats or (silence := self._silences[rank]).beat.number != beats[rank].number:
                continue
            if silence.sample is not None:
                silence.activity = activity(silence.sample, sample)
                silence.active_at = silence.active_at if silence.activity.idle else self._now
            silence.sample, silence.sampled_at = sample, self._now

    def stopped_rank(self, stop_marker: Callable[[int], str | None] = stop_marker) -> int | None:
        """Return a rank that a signal stopped and nothing has continued, or None."""
        for rank, silence in self._silences.items():
            if self.seconds_since_beat(rank) < LEAST_SILENCE_SECONDS:
                continue
            marker = stop_marker(self.ranks[rank].pid)
            if marker is None or marker != silence.stop_marker:
                silence.stop_marker, silence.stopped_since = marker, self._now
            elif self._now - silence.stopped_since > STOPPED_SECONDS:
                return rank
        return None

    @property
    def is_spare(self) -> bool:
        """True if no rank of this node has work in this group."""
        return len(self._spare) == len(self.ranks)

    @property
    def is_silent(self) -> bool:
        """True if no rank of this node makes progress: each sleeps, waits for others, or exceeds all time limits."""
        return bool(self._silences) and all(self._overdue(rank) or self._is_idle(rank) for rank in self._silences)

    @property
    def has_cause(self) -> bool:
        """True if a rank of this node can be the cause of a hang: it sleeps, or exceeds all time limits."""
        return self._any_is(Activity.SLEEPS)

    @property
    def has_waiter(self) -> bool:
        """True if a rank of this node waits for others, is the only one of its group, or exceeds all time limits."""
        return self._world_size == 1 or self._any_is(Activity.WAITS)

    def _any_is(self, activity: Activity) -> bool:
        return any(self._overdue(rank) or silence.activity is activity for rank, silence in self._silences.items())

    def slow_ranks(self) -> dict[int, Activity]:
        """Return the ranks that are late but active, if all ranks of this node are late."""
        if self.silent_seconds <= self.asleep_seconds:
            return {}
        activities = {rank: silence.activity for rank, silence in self._silences.items()}
        return {rank: activity for rank, activity in activities.items() if activity is not None and not activity.idle}

    def _overdue(self, rank: int) -> bool:
        return self.seconds_since_beat(rank) > self.leniency * self._silences[rank].beat.allowed_seconds

    def _is_idle(self, rank: int) -> bool:
        silence, limit = self._silences[rank], self.asleep_seconds
        recent = self._now - silence.sampled_at < 2 * SAMPLE_INTERVAL * limit
        return silence.activity is not None and silence.activity.idle and recent and self._now - silence.active_at > limit

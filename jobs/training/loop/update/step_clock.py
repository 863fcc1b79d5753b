"""Seconds of a rank's steps by phase, measured without a synchronization, and their exchange within the step's own reduction.

Collectives make all ranks take equally long. What tells them apart is how long each is busy: its time without its waits in
collectives.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

from ropewalk.sharding.group import REPLICATE, Group

EXCHANGE_STEPS = 4  # between two exchanges; a row has the mean of these steps
SKIPPED_STEPS = 3  # of a group: compilation and connections make them long


class StepPhase(IntEnum):
    """Phase of a step, and its column in the table of all ranks."""

    DATA = 0
    FORWARD_BACKWARD = 1
    REDUCE = 2
    UPDATE = 3


class RankRow(NamedTuple):
    """Means of one rank over the steps between two exchanges: seconds of a step, of which `phases` are without waits."""

    phases: tuple[float, ...]  # by StepPhase
    waiting: float  # for other ranks, in collectives
    without_core: float  # a thread was ready to run, and other processes had its core
    throttled: float  # by the CPU quota of its cgroup
    clock_mhz: float  # of its GPU; 0: unknown

    @property
    def busy(self) -> float:
        return sum(self.phases)

    @property
    def step(self) -> float:
        return self.busy + self.waiting


WIDTH = len(StepPhase) + 4
# of torch 2.13; before, they have other names, which it deprecates
_ALL_GATHER: Callable[..., dist.Work | None] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_REDUCE_SCATTER: Callable[..., dist.Work | None] = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
Stamp = Any  # seconds of time.perf_counter, or a CUDA event


class _Marks(NamedTuple):
    """Ends of a step's phases, and its waits by phase."""

    begin: Stamp
    ends: list[tuple[StepPhase, Stamp]]
    waits: list[tuple[StepPhase, Stamp, Stamp]]


class StepClock:
    """Clock of a rank. Steps are marked as they are started, and read once the device has ended them."""

    def __init__(self, group: Group, modules: Sequence[FSDPModule] = ()) -> None:
        """Measure the waits of the collectives in which `modules` gather parameters and reduce gradients too."""
        self._group, self._on_gpu = group, group.device.type == "cuda"
        self.measures = group.world_size > 1
        self._marks: _Marks | None = None
        self._phase = StepPhase.DATA
        self._ended: deque[_Marks] = deque()
        self._skip = SKIPPED_STEPS
        self._sums, self._count = [0.0] * (len(StepPhase) + 1), 0
        self._scheduler = _Scheduler() if self.measures else None
        reduction = _ReduceScatter(self)
        for module in modules if self.measures else ():
            module.set_custom_all_gather(_AllGather(self))  # type: ignore[arg-type]
            module.set_custom_reduce_scatter(reduction)  # type: ignore[arg-type]
            if REPLICATE in (group.mesh.mesh_dim_names or ()):
                module.set_all_reduce_hook(reduction.all_reduced)

    def begin(self) -> None:
        """Begin a step with its first phase, the wait for data."""
        if self.measures:
            self._marks, self._phase = _Marks(self._now(), [], []), StepPhase.DATA

    def end(self, phase: StepPhase) -> None:
        """End a phase. The next one begins."""
        if self._marks is None:
            return
        self._marks.ends.append((phase, self._now()))
        if phase is StepPhase.UPDATE:
            self._ended.append(self._marks)
            self._marks = None
        else:
            self._phase = StepPhase(phase + 1)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Measure a collective, in which a rank waits for the others."""
        begin = self.stamp()
        yield
        self.waited(begin)

    def waited(self, begin: Stamp) -> None:
        """Measure a collective that began at a stamp, and ends now."""
        if self._marks is not None and begin is not None:
            self._marks.waits.append((self._phase, begin, self._now()))

    def stamp(self) -> Stamp:
        """Return the time now, or None outside of a step."""
        return self._now() if self._marks is not None else None

    def exchanged(self, step: int) -> int:
        """Return how many values the reduction of a step carries for all ranks; 0: none."""
        return self._group.world_size * WIDTH if self.measures and step % EXCHANGE_STEPS == 0 else 0

    def values(self, step: int) -> torch.Tensor:
        """Return this rank's row among zeros, for the reduction; empty in a step without an exchange."""
        if not (size := self.exchanged(step)):
            return torch.empty(0, dtype=torch.float64, device=self._group.device)
        self._read()
        values = [0.0] * size
        if self._count and self._scheduler is not None:
            means = [total / self._count for total in self._sums]
            delays = (seconds / EXCHANGE_STEPS for seconds in self._scheduler.delays())
            at = self._group.rank * WIDTH
            values[at : at + WIDTH] = [*means, *delays, _clock_mhz(self._group.device)]
        self._sums, self._count = [0.0] * len(self._sums), 0
        tensor = torch.tensor(values, dtype=torch.float64, pin_memory=self._on_gpu)  # else the copy would wait for the GPU
        return tensor.to(self._group.device, non_blocking=True)

    def _now(self) -> Stamp:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _seconds(self, begin: Stamp, end: Stamp) -> float:
        return float(begin.elapsed_time(end)) / 1000 if self._on_gpu else end - begin

    def _read(self) -> None:
        """Add the steps that the device has ended."""
        while self._ended and (not self._on_gpu or self._ended[0].ends[-1][1].query()):
            marks = self._ended.popleft()
            if self._skip:
                self._skip -= 1
                continue
            waits = [0.0] * len(StepPhase)
            for phase, begin, end in marks.waits:
                waits[phase] += self._seconds(begin, end)
            previous = marks.begin
            for phase, end in marks.ends:
                self._sums[phase] += max(0.0, self._seconds(previous, end) - waits[phase])
                previous = end
            self._sums[-1] += sum(waits)
            self._count += 1


def rows_of(values: Sequence[float]) -> list[RankRow]:
    """Return the rows of all ranks from the values that they have exchanged; empty if a rank had measured nothing yet."""
    parts = [values[start : start + WIDTH] for start in range(0, len(values), WIDTH)]
    last = len(StepPhase)
    rows = [RankRow(tuple(part[:last]), *part[last:]) for part in parts]
    return rows if all(row.busy for row in rows) else []


class _Collective:
    """A collective of FSDP, as by default, and measured. `allocate` is a part of FSDP's interface."""

    def __init__(self, clock: StepClock) -> None:
        self._clock = clock

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)


class _AllGather(_Collective):
    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> dist.Work | None:
        with self._clock.waiting():
            return _ALL_GATHER(output_tensor, input_tensor, group=group, async_op=async_op)


class _ReduceScatter(_Collective):
    """The reduction within a copy of the model, and the sum over copies that may follow it."""

    def __init__(self, clock: StepClock) -> None:
        super().__init__(clock)
        self._since: Stamp = None

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        self._since = self._clock.stamp()  # a copy on one rank has no reduce-scatter
        return super().allocate(size, dtype=dtype, device=device)

    def all_reduced(self, _: torch.Tensor) -> None:
        """Measure the sum over copies, which has just ended."""
        self._clock.waited(self._since)

    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> dist.Work | None:
        with self._clock.waiting():
            work = _REDUCE_SCATTER(output_tensor, input_tensor, op=op, group=group, async_op=async_op)
        self._since = self._clock.stamp()
        return work


class _Scheduler:
    """Time that the operating system withheld from this process, from Linux's schedstat and its cgroup."""

    def __init__(self) -> None:
        self._threads = dict[str, int]()
        self._quota_file = _quota_file()
        self._throttled = 0
        self.delays()

    def delays(self) -> tuple[float, float]:
        """Return seconds since the last call: the longest wait of a thread for a core, and the time that the quota took."""
        threads, longest = dict[str, int](), 0
        for path in Path("/proc/self/task").glob("*/schedstat"):
            with suppress(OSError, ValueError, IndexError):  # the thread has ended
                threads[path.parent.name] = delay = int(path.read_text().split()[1])  # ns ready to run, without a core
                longest = max(longest, delay - self._threads.get(path.parent.name, delay))
        before, self._threads, self._throttled = self._throttled, threads, self._throttled_us()
        return longest / 1e9, (self._throttled - before) / 1e6

    def _throttled_us(self) -> int:
        if self._quota_file is None:
            return 0
        with suppress(OSError):
            for line in self._quota_file.read_text().splitlines():
                if line.startswith("throttled_usec "):
                    return int(line.split()[1])
        return self._throttled


def _quota_file() -> Path | None:
    """Return the file with the throttled time of this process's cgroup (version 2), or None."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::") and (file := Path(f"/sys/fs/cgroup{line[3:]}/cpu.stat")).is_file():
                return file
    return None


def _clock_mhz(device: torch.device) -> float:
    if device.type == "cuda":
        with suppress(RuntimeError, ImportError, OSError):  # NVML is not available, or not for a part of a GPU
            return float(torch.cuda.clock_rate(device))
    return 0.0

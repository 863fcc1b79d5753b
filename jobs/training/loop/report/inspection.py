"""A look into a rank while it trains: a profile of some steps, or the memory by kind, on all ranks at the same steps."""

import logging
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.distributed.tensor import DTensor

from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.files import read_json, write_json
from ropewalk.cluster.run.inspections import InspectionRequest, Kind, rank_request_file
from ropewalk.jobs.training.loop.update.state import TrainState

log = logging.getLogger(__name__)

_MOST_STEPS = 1000  # of a profile: a request is passed through the ranks' reduction as number x 1000 + steps; 0 steps: memory


class Inspection:
    """Answers requests of users on a rank. Rank 0 finds a request, and the reduction of a step tells all ranks of it.

    Without a request a step costs rank 0 one look at the node's local disk, and the other ranks nothing.
    """

    def __init__(self, context: JobContext, state: TrainState, device: torch.device) -> None:
        self._context, self._state, self._device = context, state, device
        self._file = rank_request_file(context.stop_flag) if context.rank == 0 and context.stop_flag is not None else None
        self._pending: InspectionRequest | None = None  # profile that begins with the next step
        self._profile: _Profile | None = None

    def requested(self) -> int:
        """Return a request that this rank has found, as a number for the reduction; 0: none."""
        if self._file is None or not os.path.exists(self._file):
            return 0
        request = InspectionRequest(**(read_json(self._file) or {}))
        self._file.unlink()  # now: after a disturbance the ranks do not begin again
        return request.number * _MOST_STEPS + min(request.steps, _MOST_STEPS - 1)

    def agree(self, wanted: int) -> None:
        """Take the request that the reduction of a step has brought to all ranks, in the same step on each."""
        if wanted:
            number, steps = divmod(wanted, _MOST_STEPS)
            kind: Kind = "profile" if steps else "memory"
            self._pending = InspectionRequest(number=number, kind=kind, attempt=self._context.attempt, time=0.0, steps=steps)

    def begin_step(self, step: int) -> None:
        """Begin, continue or end a profile; called by all ranks at the same steps."""
        if self._profile is not None and self._profile.next_step(step):
            threading.Thread(target=self._write, args=(self._profile,), name="profile", daemon=True).start()
            self._profile = None
        if self._pending is not None and self._pending.kind == "profile" and self._profile is None:
            self._profile, self._pending = _Profile(self._pending, step, self._device), None

    def end_backward(self, step: int) -> None:
        """Report the memory, if that is wanted: gradients are there now, and gone after the update."""
        if self._pending is not None and self._pending.kind == "memory":
            self._answer(self._pending, {"step": step, **memory_by_kind(self._state, self._device)})
            self._pending = None

    def _write(self, profile: "_Profile") -> None:
        """Write a trace beside the training, and the answer after it."""
        path = self._folder(profile.request) / f"rank-{self._context.rank}.trace.json.gz"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            profile.export(path)
            self._answer(profile.request, {"first_step": profile.first, "last_step": profile.last, "trace": path.name})
        except (OSError, RuntimeError) as error:
            log.warning("the profile could not be written: %s", error)

    def _answer(self, request: InspectionRequest, values: dict[str, Any]) -> None:
        context = self._context
        head = {"rank": context.rank, "world_size": context.world_size, "group": context.group}
        try:
            self._folder(request).mkdir(parents=True, exist_ok=True)
            write_json(self._folder(request) / f"rank-{context.rank}.json", {**head, **values}, durable=False)
        except OSError as error:
            log.warning("a request to look into this rank could not be answered: %s", error)

    def _folder(self, request: InspectionRequest) -> Path:
        return request.folder(self._context.run)


class _Profile:
    """A profiler that is on, from the beginning of its first step to the end of its last one."""

    def __init__(self, request: InspectionRequest, step: int, device: torch.device) -> None:
        self.request, self.first, self.last = request, step, step + request.steps - 1
        activities = [torch.profiler.ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(activities=activities)
        self._profiler.start()
        self._span = self._open_span(step)

    @staticmethod
    def _open_span(step: int) -> torch.profiler.record_function:
        span = torch.profiler.record_function(f"step {step}")
        span.__enter__()  # type: ignore[no-untyped-call]  # it ends with the step, in another call
        return span

    def next_step(self, step: int) -> bool:
        """Begin another step; return True if the profile was complete, and has ended instead."""
        self._span.__exit__(None, None, None)
        if step > self.last or step <= self.first:  # an earlier one: the run rolled back to a checkpoint
            self._profiler.stop()
            return True
        self._span = self._open_span(step)
        return False

    def export(self, path: Path) -> None:
        partial = path.with_name(f".{path.name}")
        self._profiler.export_chrome_trace(str(partial))
        partial.rename(path)


def memory_by_kind(state: TrainState, device: torch.device) -> dict[str, Any]:
    """Return the bytes of this rank's memory by kind. Call it while there are gradients."""
    parameters = list(state.model.parameters())
    kinds = {
        "parameters": _bytes([*parameters, *state.model.buffers()], device),
        "gradients": _bytes((each.grad for each in parameters if each.grad is not None), device),
        "optimizer": _bytes((value for entry in state.optimizer.state.values() for value in entry.values()), device),
    }
    if state.ema is not None:
        kinds["average of the weights"] = _bytes(state.ema.tensors.values(), device)
    state_bytes = sum(kinds.values())
    if device.type != "cuda":
        total = psutil.Process().memory_info().rss
        return {"device": "cpu", "total": total, "kinds": {**kinds, "rest": max(0, total - state_bytes)}}
    stats = torch.cuda.memory_stats(device)
    free, capacity = torch.cuda.mem_get_info(device)
    allocated, reserved = stats["allocated_bytes.all.current"], stats["reserved_bytes.all.current"]
    kinds["other tensors"] = max(0, allocated - state_bytes)
    kinds["cached by the allocator"] = reserved - allocated
    kinds["outside of torch"] = max(0, capacity - free - reserved)  # CUDA itself, NCCL, other processes
    most = stats["allocated_bytes.all.peak"]
    peak = {"allocated": most, "activations": max(0, most - state_bytes)}
    return {"device": str(device), "total": capacity - free, "capacity": capacity, "kinds": kinds, "peak": peak}


def _bytes(tensors: Iterable[Any], device: torch.device) -> int:
    """Sum the storage of tensors on a device, each once."""
    storages: dict[int, int] = {}
    for each in tensors:
        if isinstance(each, torch.Tensor):
            local = each.to_local() if isinstance(each, DTensor) else each
            if local.device.type == device.type:
                storages[local.untyped_storage().data_ptr()] = local.untyped_storage().nbytes()
    return sum(storages.values())

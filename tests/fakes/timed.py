"""A pretraining run with planted faults, on which a witness on rank 0 writes down what took the time."""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.run.context import JobContext

PLAN = "PLANTED_FAULTS"  # variable: a JSON list of {kind, step, rank, seconds}
PACE_SECONDS = 0.04  # of a step, beside its computation


class Witness:
    """Spans of time by kind, one line each when it ends."""

    def __init__(self, context: JobContext) -> None:
        self._path, self._context = context.run.path / "witness.jsonl", context

    def write(self, kind: str, begin: float, step: int) -> None:
        if self._context.rank == 0:
            where = {"attempt": self._context.attempt, "group": self._context.group}
            line = {"kind": kind, "begin": begin, "end": time.time(), "step": step, **where}
            with self._path.open("a") as stream:
                stream.write(json.dumps(line) + "\n")

    @contextmanager
    def watch(self, kind: str, step: int = 0) -> Iterator[None]:
        begin = time.time()
        yield
        self.write(kind, begin, step)


class Faults:
    """The faults of the plan that are due; one that ends a rank happens once in a run."""

    def __init__(self, context: JobContext) -> None:
        self._context, self._faults = context, json.loads(os.environ.get(PLAN, "[]"))

    def happen(self, *kinds: str, step: int) -> None:
        for fault in self._faults:
            here = fault["kind"] in kinds and (fault["step"], fault["rank"]) == (step, self._context.rank)
            if here and self._first(fault):
                _happen(fault)

    def _first(self, fault: dict[str, Any]) -> bool:
        mark = self._context.run.path / f"happened-{fault['kind']}-{fault['step']}"
        if mark.exists():
            return False
        mark.write_text(json.dumps(time.time()))
        return True


def _happen(fault: dict[str, Any]) -> None:
    match fault["kind"]:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case _:
            time.sleep(fault["seconds"])


def train(context: JobContext) -> dict[str, object]:
    """Pretrain as the plan says."""
    from ropewalk.jobs.training.loop.trainer import Trainer
    from ropewalk.jobs.training.loop.validation import Validation
    from ropewalk.jobs.training.pretrain.job import main
    from ropewalk.sharding.checkpoints.checkpoint import Checkpoints

    witness, faults = Witness(context), Faults(context)
    start, settle, batches = Trainer._start_step, Trainer._settle, Trainer.batches
    begun, newest = [0.0], [0]

    def started(self: Trainer, batch: Any) -> None:
        begun[0] = time.time()
        witness.write("begin", begun[0], self.progress.step + 1)
        time.sleep(PACE_SECONDS)
        faults.happen("slow", "kill", "stop", step=self.progress.step + 1)
        start(self, batch)

    def settled(self: Trainer, most: int) -> bool:
        done = settle(self, most)
        witness.write("step", begun[0], self.progress.step)
        newest[0] = self.progress.step
        return done

    def waited(self: Trainer) -> Any:
        inner = batches(self)
        while True:
            with witness.watch("data", self.progress.step):
                faults.happen("data", step=self.progress.step)
                batch = next(inner, None)
            if batch is None:
                return
            yield batch

    def watched(owner: Any, name: str, kind: str) -> None:
        method = getattr(owner, name)

        def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
            step = newest[0]
            with witness.watch(kind, step):
                faults.happen(kind, step=step)
                return method(self, *arguments, **keywords)

        patch.setattr(owner, name, call)

    with pytest.MonkeyPatch.context() as patch:  # a process that stays calls this for each of its groups
        for name, function in (("_start_step", started), ("_settle", settled), ("batches", waited)):
            patch.setattr(Trainer, name, function)
        watched(Checkpoints, "save", "save")
        watched(Checkpoints, "close", "save")
        watched(Validation, "score", "validate")
        return main(context)


def spans(run: Path) -> list[dict[str, Any]]:
    """Read what the witness wrote."""
    return [json.loads(line) for line in (run / "witness.jsonl").read_text().splitlines()]

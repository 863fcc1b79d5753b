"""A refresh whose steps are played: a serving run with feedback, a model in production, and runs that end as a test says."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import write_json
from ropewalk.cluster.run.names import RESULT
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.models.registry.promote import promote
from ropewalk.jobs.runs.models.find_model import find_checkpoint
from ropewalk.jobs.serving.collect.job import main as collect
from ropewalk.jobs.serving.feedback.records import FOLDER, answers_store, exchanges_store, ratings_store
from ropewalk.jobs.serving.feedback.store import Spool, Store
from ropewalk.jobs.serving.refresh.config import RefreshConfig
from ropewalk.jobs.serving.refresh.loop import Loop
from ropewalk.jobs.serving.refresh.report import write_report
from ropewalk.jobs.serving.refresh.steps import Steps
from ropewalk.jobs.serving.refresh.trigger import DriftCheck, DriftReport, RefreshTrigger
from ropewalk.jobs.training.loop.weights.content_hash import hash_of_model
from tests.jobs.models.registry.registered import MODEL_RECORD, judged, trained

NOW = 1_790_000_000.0
KEYS: dict[str, Any] = {
    "train": {"steps": 4},
    "gate": {"evaluate": {"tasks": ["quiz.yaml"], "require": {"quiz": ">= 0.5"}}},
    "canary": None,
    "approve": False,
    "least_conversations": 2,
}


def keep(store: Store, rows: Sequence[Mapping[str, Any]]) -> None:
    """Put rows into a store; columns that they lack are null."""
    spool = Spool(store.folder)
    spool.append([{**dict.fromkeys(store.schema.names), **row} for row in rows])
    spool.close()


def captured(number: int, message: str, answered: str, **more: Any) -> dict[str, Any]:
    """An exchange of a serving run."""
    messages = json.dumps([{"role": "user", "content": message}])
    about = {"id": f"req-{number}", "answer_id": f"chat-{number}", "time": NOW - 1000 + number, "version": "main@1"}
    choices = json.dumps([{"message": {"role": "assistant", "content": answered}, "finish_reason": "stop"}])
    what = {"prompt": message, "answer": answered, "messages": messages, "choices": choices, "conversation": f"c{number}"}
    return {**about, "status": 200, "outcome": "completed", **what, **more}


def rated(number: int, **more: Any) -> dict[str, Any]:
    """Rating of a captured answer."""
    return {"id": f"rating-{number}", "exchange": f"req-{number}", "time": NOW - 900 + number, **more}


def serving_run(root: Path) -> RunDir:
    """A serving run: eight answers, of which people have corrected three, liked three, disliked one."""
    run = RunDir.create("serve", {"job": "serve", "config": {"model": "production"}, "cluster": "local"}, root)
    run.begin_attempt()
    keep(exchanges_store(run.path / FOLDER), [captured(n, f"What is {n}?", f"It is {n}.") for n in range(8)])
    corrections = [rated(n, correction=json.dumps(f"{n}, of course.")) for n in range(3)]
    keep(
        ratings_store(run.path / FOLDER),
        [*corrections, *(rated(n, rating="up") for n in range(3, 6)), rated(6, rating="down")],
    )
    return run


@dataclass
class Played:
    """Simulated outcomes of the steps of a round."""

    refused: tuple[str, ...] = ()  # steps whose gate refuses
    failed: tuple[str, ...] = ()  # steps that fail, until they are taken out of this
    right: dict[str, float] = field(default_factory=lambda: {"candidate": 0.8, "production": 0.8})  # of the quiz's items
    calls: list[tuple[str, str]] = field(default_factory=list)

    def ask(self, verb: str, run: RunDir) -> None:
        """Start a step's run, which ends at once."""
        step = str(run.record["step"]).partition("-")[2]
        self.calls.append((verb, step))
        attempt = run.begin_attempt()
        if step in self.failed:
            return run.write_outcome(attempt, Outcome(state=RunState.FAILED, exit_code=1, cause="it was out of memory"))
        results = getattr(self, f"_{run.record['job']}")(run, attempt, step)
        write_json(run.attempt_dir(attempt) / RESULT, results)
        state = RunState.REFUSED if step in self.refused else RunState.SUCCEEDED
        run.write_outcome(attempt, Outcome(state=state, exit_code=0, cause="done"))
        return None

    def _collect(self, run: RunDir, attempt: int, step: str) -> dict[str, Any]:
        context = JobContext(run=run, attempt=attempt)
        context.fence.claim()
        return collect(context)

    def _finetune(self, run: RunDir, attempt: int, step: str) -> dict[str, Any]:
        base = run.record["config"]["model"]
        write_json(run.model_record, {**MODEL_RECORD, "weights": {key: base[key] for key in ("run", "step", "path")}})
        folder = run.checkpoints / "step-00000004"
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "manifest.json", {"files": [{"path": "a", "size": 1, "checksum": run.id}]})
        return {"step": 4}

    _align = _finetune

    def _evaluate(self, run: RunDir, attempt: int, step: str) -> dict[str, Any]:
        side = step.partition("-")[2]
        lines = [
            {"task": "quiz", "item": n, "hash": f"h{n}", "values": {"acc": float(n < 50 * self.right[side])}, "group": n}
            for n in range(50)
        ]
        folder = run.path / "evaluation"
        folder.mkdir(exist_ok=True)
        (folder / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        write_json(folder / "report.json", {"metrics": {"quiz": {"acc": True}}})
        passed = step not in self.refused
        failed = [] if passed else [{"words": "quiz is 0.3, and must be >= 0.5"}]
        figures = {"quiz": {"require": ">= 0.5", "value": self.right[side], "standard_error": 0.05, "n": 50}}
        gate = {"gate": {"passed": passed, "failed": failed}, "figures": figures} if side == "candidate" else {}
        return {"model_step": 4, "model_weights": self._weights(run), **gate}

    def _weights(self, run: RunDir) -> str:
        return hash_of_model(*find_checkpoint(str(run.record["config"]["model"]), run.path.parent))

    def _audit(self, run: RunDir, attempt: int, step: str) -> dict[str, Any]:
        (run.path / "audit").mkdir(exist_ok=True)
        side = step.partition("-")[2]
        rows = [
            {"measure": "memorized", "key": f"m{n}", "value": float(n < 40 * self.right.get(f"leaks {side}", 0.1)), "group": n}
            for n in range(40)
        ]
        (run.path / "audit/items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"model_step": 4, "model_weights": self._weights(run), "gate": {"passed": step not in self.refused, "failed": []}}


class Stage:
    """A refresh, its serving run, and the registry beside them."""

    def __init__(self, root: Path, played: Played | None = None, **keys: Any) -> None:
        self.root, self.played = root, played or Played()
        base = trained(root)
        judged(root, base.id)
        promote(base.id, root=root)
        self.served = serving_run(root)
        values = {"watch": self.served.id, "name": "fresh", **KEYS, **keys}
        self.config = load_config(RefreshConfig, values)
        record = {"job": "refresh", "cluster": "local", "config": self.config.model_dump(mode="json"), "code": {"commit": "c"}}
        self.run = RunDir.create("fresh", {**record, "resources": {"nodes": 1}}, root)
        self.now = NOW
        self.waits: Callable[[], None] = lambda: None  # what happens while the driver waits
        self.drift: DriftCheck = lambda state: DriftReport(False, "", state, {})

    def drive(self) -> list[dict[str, Any]]:
        """An attempt of the driver; the facts of all rounds."""
        from ropewalk.jobs.serving.refresh.rounds import read_rounds

        context = JobContext(run=self.run, attempt=self.run.begin_attempt())
        context.fence.claim()
        steps = Steps(context, self.played.ask, look_seconds=0)
        plain_wait = steps.wait

        def wait() -> None:
            self.now += 20
            self.waits()
            plain_wait()

        steps.wait = wait  # type: ignore[method-assign]
        trigger = RefreshTrigger(self.config.trigger, self.served, self.drift, lambda: self.now)
        Loop(context, self.config, steps, trigger, lambda: self.now).drive(lambda: write_report(self.run))
        write_report(self.run)
        return read_rounds(self.run)

    def answer(self, version: str, count: int, *, errors: int = 0, **rating: Any) -> None:
        """Let a version answer requests, each of which is rated if `rating` says so."""
        stamp = time.monotonic_ns()
        rows = [
            {"id": f"r{stamp}-{n}", "answer_id": f"a{stamp}-{n}", "time": self.now, "version": version}
            | {"status": 200, "outcome": "failed" if n < errors else "completed"}
            for n in range(count)
        ]
        keep(answers_store(self.served.path / FOLDER), rows)
        if rating:
            messages = [{"id": f"s{row['id']}", "exchange": row["id"], "time": self.now, **rating} for row in rows]
            keep(ratings_store(self.served.path / FOLDER), messages)

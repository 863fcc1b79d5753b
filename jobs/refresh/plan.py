"""The steps of a round: which job each of them is, and with which keys."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.config import JobConfig

if TYPE_CHECKING:
    from jobs.refresh.config import RefreshConfig

COLLECT, TRAIN, ALIGN = "collect", "train", "align"
CANDIDATE, BASE = "candidate", "production"
WORDS = {
    COLLECT: "collect feedback",
    TRAIN: "train",
    ALIGN: "align",
    f"evaluate-{CANDIDATE}": "evaluate the candidate",
    f"evaluate-{BASE}": "evaluate production",
    f"audit-{CANDIDATE}": "audit the candidate",
    f"audit-{BASE}": "audit production",
}


@dataclass(frozen=True)
class Step:
    """One step of a round."""

    name: str
    job: str
    config: JobConfig


@dataclass(frozen=True)
class Plan:
    """Makes the steps of a round of one refresh."""

    config: "RefreshConfig"
    label: str  # what the runs' names begin with
    group: str  # of W&B

    def collect(self, since: float | None, until: float | None) -> Step:
        """Feedback as data."""
        replay = {"replay": self.config.replay} if self.config.replay else {}
        made = {"watch": self.config.watch, "since": since, "until": until, **replay}
        return self._step(COLLECT, "collect", self.config.data, made)

    def train(self, base: dict[str, Any], data: str) -> Step:
        """Fine-tune `base` (keys of `model`) on conversations."""
        return self._step(TRAIN, "finetune", self.config.train, {"model": base, "data": data})

    def align(self, base: dict[str, Any], data: str) -> Step:
        """Align what was trained to corrected answers."""
        return self._step(ALIGN, "align", self.config.align, {"model": base, "data": data})

    def evaluate(self, side: str, ref: str) -> Step:
        """Evaluate one side; production is not held to the gate, it is what the candidate is compared with."""
        return self._step(f"evaluate-{side}", "evaluate", self._of_side(side, self.config.gate.evaluate), {"model": ref})

    def audit(self, side: str, ref: str, data: str | None) -> Step:
        """Audit one side; `data` is what the candidate has learnt from, which is searched for evaluation items."""
        keys = self._of_side(side, self.config.gate.audit)
        if "contamination" in keys and "data" not in (keys["contamination"] or {}):
            if side == CANDIDATE and data is not None:
                keys["contamination"] = {**(keys["contamination"] or {}), "data": data}
            else:
                del keys["contamination"]
        return self._step(f"audit-{side}", "audit", keys, {"model": ref})

    def examples(self) -> dict[str, JobConfig]:
        """The configuration of each kind of step, with made-up paths."""
        place = self.group
        steps = [self.collect(None, None), self.train({"path": place}, f"{place}/data.jsonl")]
        if self.config.align:
            steps.append(self.align({"path": place}, f"{place}/pairs.jsonl"))
        found = {step.name: step.config for step in steps}
        if self.config.gate.evaluate:
            found["evaluate"] = self.evaluate(CANDIDATE, place).config
        if self.config.gate.audit:
            found["audit"] = self.audit(CANDIDATE, place, place).config
        return found

    @staticmethod
    def _of_side(side: str, keys: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in keys.items() if side == CANDIDATE or key != "require"}

    def _step(self, name: str, job: str, keys: dict[str, Any], made: dict[str, Any]) -> Step:
        more = {"name": f"{self.label}-{name}", "wandb": {"group": self.group}}
        return Step(name, job, self.config.child_config(job, keys, {**more, **made}))

"""The steps of a round: which job each of them is, and with which keys."""

from dataclasses import dataclass
from typing import Any

from ropewalk.cluster.config import JobConfig
from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.registry import config_of, find_job

Keys = dict[str, Any]  # of another job; checked by that job's configuration

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


SECTIONS = {"finetune": "train", "collect": "data", "evaluate": "gate.evaluate", "audit": "gate.audit"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Makes the steps of a round of one refresh, out of the user's keys and what other steps made."""

    watch: str
    seed: int
    data: Keys
    replay: Keys
    training: Keys
    alignment: Keys
    evaluation: Keys
    auditing: Keys
    label: str  # what the runs' names begin with
    group: str  # of W&B

    def collect(self, since: float | None, until: float | None) -> Step:
        """Feedback as data."""
        replay = {"replay": self.replay} if self.replay else {}
        made = {"watch": self.watch, "since": since, "until": until, **replay}
        return self._step(COLLECT, "collect", self.data, made)

    def train(self, base: dict[str, Any], data: str) -> Step:
        """Fine-tune `base` (keys of `model`) on conversations."""
        return self._step(TRAIN, "finetune", self.training, {"model": base, "data": data})

    def align(self, base: dict[str, Any], data: str) -> Step:
        """Align what was trained to corrected answers."""
        return self._step(ALIGN, "align", self.alignment, {"model": base, "data": data})

    def evaluate(self, side: str, ref: str) -> Step:
        """Evaluate one side; production is not held to the gate, it is what the candidate is compared with."""
        return self._step(f"evaluate-{side}", "evaluate", self._of_side(side, self.evaluation), {"model": ref})

    def audit(self, side: str, ref: str, data: str | None) -> Step:
        """Audit one side; `data` is what the candidate has learnt from, which is searched for evaluation items."""
        keys = self._of_side(side, self.auditing)
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
        if self.alignment:
            steps.append(self.align({"path": place}, f"{place}/pairs.jsonl"))
        found = {step.name: step.config for step in steps}
        if self.evaluation:
            found["evaluate"] = self.evaluate(CANDIDATE, place).config
        if self.auditing:
            found["audit"] = self.audit(CANDIDATE, place, place).config
        return found

    @staticmethod
    def _of_side(side: str, keys: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in keys.items() if side == CANDIDATE or key != "require"}

    def _step(self, name: str, job: str, keys: dict[str, Any], made: dict[str, Any]) -> Step:
        more = {"name": f"{self.label}-{name}", "wandb": {"group": self.group}}
        return Step(name, job, self._config(job, keys, {**more, **made}))

    def _config(self, job: str, keys: Keys, made: Keys) -> JobConfig:
        """The configuration of a step. Raises ConfigError that names the section of the keys."""
        section = SECTIONS.get(job, job)
        if taken := sorted(set(keys) & set(made) - {"name", "seed", "wandb"}):
            raise ConfigError(f"{section}.{taken[0]}: is filled in by the refresh; leave it out")
        try:
            return load_config(config_of(find_job(job)), {"seed": self.seed, **made, **keys}).resolved()
        except ConfigError as error:
            raise ConfigError(f"{section}: {error}") from None

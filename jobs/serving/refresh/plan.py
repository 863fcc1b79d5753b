"""Steps of a round: their jobs and keys."""

from dataclasses import dataclass
from typing import Any

from ropewalk.cluster.config import JobConfig
from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.registry import config_of, find_job

Keys = dict[str, Any]  # configuration keys of another job, checked by that job

COLLECT, TRAIN, ALIGN = "collect", "train", "align"
CANDIDATE, BASE = "candidate", "production"
STEP_NAMES = {
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
    """Builds the steps of a round from the user's keys and the outputs of earlier steps."""

    watch: str
    seed: int
    data: Keys
    replay: Keys
    training: Keys
    alignment: Keys
    evaluation: Keys
    auditing: Keys
    label: str  # prefix of the runs' names
    group: str  # W&B group

    def collect(self, since: float | None, until: float | None) -> Step:
        replay = {"replay": self.replay} if self.replay else {}
        filled = {"watch": self.watch, "since": since, "until": until, **replay}
        return self._step(COLLECT, "collect", self.data, filled)

    def train(self, base: dict[str, Any], data: str) -> Step:
        """Fine-tune `base` (keys of `model`) on conversations."""
        return self._step(TRAIN, "finetune", self.training, {"model": base, "data": data})

    def align(self, base: dict[str, Any], data: str) -> Step:
        """Align a fine-tuned model to preference pairs."""
        return self._step(ALIGN, "align", self.alignment, {"model": base, "data": data})

    def evaluate(self, side: str, ref: str) -> Step:
        """Evaluate one side. Production is only a baseline: the gate's requirements are left out."""
        return self._step(f"evaluate-{side}", "evaluate", self._of_side(side, self.evaluation), {"model": ref})

    def audit(self, side: str, ref: str, data: str | None) -> Step:
        """Audit one side. `data` is the candidate's training data, which is searched for evaluation items."""
        keys = self._of_side(side, self.auditing)
        if "contamination" in keys and "data" not in (keys["contamination"] or {}):
            if side == CANDIDATE and data is not None:
                keys["contamination"] = {**(keys["contamination"] or {}), "data": data}
            else:
                del keys["contamination"]
        return self._step(f"audit-{side}", "audit", keys, {"model": ref})

    def examples(self) -> dict[str, JobConfig]:
        """Return a configuration of each kind of step, with placeholder paths."""
        placeholder = self.group
        steps = [self.collect(None, None), self.train({"path": placeholder}, f"{placeholder}/data.jsonl")]
        if self.alignment:
            steps.append(self.align({"path": placeholder}, f"{placeholder}/pairs.jsonl"))
        configs = {step.name: step.config for step in steps}
        if self.evaluation:
            configs["evaluate"] = self.evaluate(CANDIDATE, placeholder).config
        if self.auditing:
            configs["audit"] = self.audit(CANDIDATE, placeholder, placeholder).config
        return configs

    @staticmethod
    def _of_side(side: str, keys: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in keys.items() if side == CANDIDATE or key != "require"}

    def _step(self, name: str, job: str, keys: dict[str, Any], filled: dict[str, Any]) -> Step:
        wandb = {"group": self.group, "tables": "figures", **(keys.get("wandb") or {})}  # texts of users stay here
        more = {"name": f"{self.label}-{name}", **filled}
        return Step(name, job, self._config(job, {**keys, "wandb": wandb}, more))

    def _config(self, job: str, keys: Keys, filled: Keys) -> JobConfig:
        """Return the configuration of a step. Raises ConfigError that names the section of the keys."""
        section = SECTIONS.get(job, job)
        if clashes := sorted(set(keys) & set(filled) - {"name", "seed", "wandb"}):
            raise ConfigError(f"{section}.{clashes[0]}: is set by the refresh; leave it out")
        try:
            return load_config(config_of(find_job(job)), {"seed": self.seed, **filled, **keys}).resolved()
        except ConfigError as error:
            raise ConfigError(f"{section}: {error}") from None

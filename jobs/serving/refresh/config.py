"""Configuration keys of the `refresh` job."""

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from ropewalk.cluster.backends.profiles import load_profile
from ropewalk.cluster.config import HANGS, RANKS, WEIGHTS, JobConfig, Resources, UnsetGpus
from ropewalk.cluster.config_reader import apply_override, changed_keys
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.input_paths import PathView, Resolve
from ropewalk.cluster.section import Section
from ropewalk.jobs.runs.models.model_versions import Version, find_version
from ropewalk.jobs.runs.show.status import find_run
from ropewalk.jobs.serving.refresh.plan import Keys, Plan

TO_COME = "/to-come"  # placeholder for outputs of steps that have not run, used to check keys


class DriftTrigger(Section):
    """Start a round if the prompts have drifted from a reference."""

    reference: str = Field(
        description="reference texts: a file, a data set, a training run, or SERVE-RUN@14d..7d, a window that moves along; "
        "with a fixed reference every check after the first drift is an alarm"
    )
    window: str = Field(
        default="7d", pattern=r"^\d+(\.\d+)?[hdw]$", description="age of the prompts that are checked: 12h, 7d, 1w"
    )
    every_hours: float = Field(
        default=24, gt=0, description="hours between checks; alpha holds for the checks of all rounds together"
    )
    options: Keys = Field(default={}, description="keys of drift detection: alpha, texts, permutations, embedding")


class TriggerConfig(Section):
    """Conditions that start a round; the first to hold counts. With none set a round starts at once."""

    every_hours: float | None = Field(default=None, gt=0, description="hours since the previous round or the start of the run")
    feedback: int | None = Field(
        default=None, ge=1, description="number of answers that were rated or corrected since the previous round started"
    )
    drift: DriftTrigger | None = Field(default=None, description="drift of the prompts; unset: not checked")
    look_seconds: float = Field(default=30, gt=0, description="seconds between checks of the conditions")


class GateConfig(Section):
    """Requirements for a candidate. A candidate that is significantly worse than production on paired items is refused too."""

    evaluate: Keys = Field(default={}, description="keys of evaluate: data, tasks, require, ...; empty: no evaluation")
    audit: Keys = Field(
        default={},
        description="keys of audit: suites, memorization, require, ...; `contamination` without `data` uses the new data",
    )
    margin: dict[str, float] = Field(
        default={},
        description="non-inferiority margins {TASK/METRIC or suite: margin}; other measures must not be significantly worse",
    )

    @model_validator(mode="after")
    def _requires(self) -> Self:
        if not self.evaluate.get("require") and not self.audit.get("require"):
            raise ValueError("a gate is required: set gate.evaluate.require, gate.audit.require or both")
        return self


class CanaryConfig(Section):
    """Length and limits of the canary phase; the share of traffic is set in the serving run."""

    minutes: float = Field(default=10, ge=0, description="minimum duration in minutes")
    requests: int = Field(default=50, ge=0, description="minimum number of answers of the candidate")
    most_minutes: float = Field(
        default=60, gt=0, description="maximum duration in minutes; then it is judged by the answers so far"
    )
    max_error_rate: float = Field(default=0.02, ge=0, le=1, description="maximum share of failed answers")
    settle_minutes: float = Field(default=10, ge=0, description="minutes the serving run may take to confirm the promotion")


class RegistryConfig(Section):
    """Versions of the model that stay in the registry."""

    keep: int | None = Field(
        default=None,
        ge=1,
        description="newest versions to keep, besides those that aliases, a rollback and serving runs need; unset: all",
    )


class RefreshConfig(JobConfig):
    """A run that retrains a served model from its feedback. Each step is a run of its own; `resources` are the driver's."""

    passes_packages_on = True
    usual_keys = (
        *("watch", "model", "train", "align", "gate.evaluate", "gate.audit", "trigger.every_hours", "trigger.feedback"),
        *("trigger.drift", "canary.minutes", "canary.requests", "rounds", "approve", "seed", "name"),
    )
    hidden_keys = HANGS | RANKS | WEIGHTS | {"resources.gpus"}

    watch: str = Field(description="serving run with capture switched on")
    model: str = Field(default="production", description="alias to train from and to promote to: production, NAME@production")
    train: Keys = Field(description="keys of finetune, without model and data: steps, lora, batch, optim, resources, ...")
    align: Keys = Field(default={}, description="keys of align, without model and data; empty: no alignment")
    least_pairs: int = Field(default=16, ge=1, description="minimum number of preference pairs for alignment")
    gate: GateConfig = Field(description="requirements for a candidate")
    canary: CanaryConfig | None = Field(default=CanaryConfig(), description="canary phase before promotion; null: none")
    data: Keys = Field(default={}, description="more keys of collect: unrated, most, most_per_client, decontaminate")
    replay: Keys = Field(default={}, description="earlier conversations to mix in: {data: FILES, share: 0.3}; empty: none")
    least_conversations: int = Field(
        default=8, ge=1, description="minimum number of new conversations; with fewer a round ends without training"
    )
    registry: RegistryConfig = Field(default=RegistryConfig(), description="removal of old versions after each round")
    trigger: TriggerConfig = Field(default=TriggerConfig(), description="conditions that start a round")
    rounds: int | None = Field(default=1, ge=1, description="number of rounds; null: run until cancelled")
    approve: bool = Field(
        default=True, description="wait for `ropewalk approve RUN` before a candidate gets traffic; false: promote unattended"
    )

    @model_validator(mode="after")
    def _alias(self) -> Self:
        if self.model.partition("@")[2].isdigit():
            raise ValueError(f"model: {self.model!r} is a version, which never changes; name an alias, such as production")
        return self

    def plan(self, label: str, group: str) -> Plan:
        """Return the plan of a round; the names of its runs start with `label`."""
        return Plan(
            watch=self.watch,
            seed=self.seed,
            data=self.data,
            replay=self.replay,
            training=self.train,
            alignment=self.align,
            evaluation=self.gate.evaluate,
            auditing=self.gate.audit,
            label=label,
            group=group,
        )

    def example_configs(self) -> dict[str, JobConfig]:
        """Return the configuration of each step, with placeholders for outputs of earlier steps. Raises ConfigError."""
        return self.plan("example", TO_COME).examples()

    def base(self, root: Path | None = None) -> Version:
        """Return the version the alias points to now. Raises ConfigError if it points to none."""
        version = find_version(self.model, root)
        if version is None:
            raise ConfigError(f"model: there is no alias {self.model!r}; `ropewalk promote MODEL --to {self.alias}` makes one")
        return version

    @property
    def alias(self) -> str:
        """Alias without the model's name."""
        return self.model.rpartition("@")[2]

    def with_inputs(self, resolve: Resolve) -> Self:
        """Return the refresh with the inputs replaced that exist before its first round. Raises ConfigError."""
        sections = {
            "collect": ("data", self.data),
            "evaluate": ("evaluate", self.gate.evaluate),
            "audit": ("audit", self.gate.audit),
        }
        new = {name: copy.deepcopy(section) for name, section in sections.values()}
        for step, config in self.example_configs().items():
            name = sections.get(step, ("",))[0]
            resolve_step = partial(_resolve_step, resolve, f"gate.{name}" if name in {"evaluate", "audit"} else name)
            for key, value in changed_keys(config, config.with_inputs(resolve_step)).items() if name else ():
                apply_override(new[name], f"{key}={json.dumps(value)}")
        gate = self.gate.model_copy(update={"evaluate": new["evaluate"], "audit": new["audit"]})
        return self.model_copy(update={"data": new["data"], "gate": gate})

    def own_code(self) -> bool:
        """Return True if a step needs code of the user's own."""
        return any(config.own_code() for config in self.example_configs().values())

    def children_resources(self) -> list[Resources]:
        """Return the resources of each step."""
        return [config.resources for config in self.example_configs().values()]

    def unset_gpus(self) -> list[UnsetGpus]:
        """Return the steps that compute on a model and do not set `gpus`."""
        keys = {"evaluate": "gate.evaluate", "audit": "gate.audit"}
        return [
            part.inside(keys.get(step, step)) for step, config in self.example_configs().items() for part in config.unset_gpus()
        ]

    def extra_record(self, cluster_name: str) -> dict[str, Any]:
        """Return the cluster's profile: the driver may run on a machine without the profile file."""
        profile = load_profile(cluster_name)
        return {"clusters": {profile.name: {"backend": profile.backend, **profile.options}}}

    def check_keys(self) -> None:
        """Raise ConfigError for keys of a step that are wrong."""
        self.example_configs()

    def resolved(self) -> Self:
        """Check the keys of all steps, and replace `watch` by the full run id. Raises ConfigError."""
        self.check_keys()
        return self.model_copy(update={"watch": find_run(self.watch).id})

    def preflight(self, here: PathView = Path) -> None:
        """Raise ConfigError or DataError unless the alias and the inputs that exist before the first round are present."""
        self.base()

        def view(path: str) -> Path | None:
            return None if path.startswith(TO_COME) else here(path)

        for step, config in self.example_configs().items():
            if step in ("collect", "evaluate", "audit"):
                _check(step, config, view)


def _resolve_step(resolve: Resolve, section: str, key: str, value: str, need: str) -> str:
    return value if value.startswith(TO_COME) else resolve(f"{section}.{key}", value, need)


def _check(step: str, config: JobConfig, view: PathView) -> None:
    try:
        config.preflight(view)
    except ConfigError as error:
        raise ConfigError(f"{step}: {error}") from None

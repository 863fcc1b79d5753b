"""The keys of the `refresh` job."""

from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from ropewalk.cluster.backends.profiles import load_profile
from ropewalk.cluster.config import JobConfig, PathView, Resources, Section
from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.runs.models.model_versions import Version, find_version
from ropewalk.jobs.runs.show.status import find_run
from ropewalk.jobs.serving.refresh.plan import Keys, Plan

TO_COME = "/to-come"  # what no step has made yet, where keys are checked


class DriftTrigger(Section):
    """Begin when what people ask has moved away from what the model learnt."""

    reference: str = Field(
        description="what it is compared with: a file, a data set, a training run, or SERVE-RUN@14d..7d, which moves along; "
        "with one that stays, each look after the first drift is an alarm"
    )
    window: str = Field(default="7d", pattern=r"^\d+(\.\d+)?[hdw]$", description="the prompts of so long: 12h, 7d, 1w")
    every_hours: float = Field(default=24, gt=0, description="hours between two looks; those of all rounds together keep alpha")
    options: Keys = Field(default={}, description="keys of a search for drift: alpha, texts, permutations, embedding")


class TriggerConfig(Section):
    """What begins a round, whichever comes first; with nothing set the round begins at once."""

    every_hours: float | None = Field(default=None, gt=0, description="hours after the round before, or after the start")
    feedback: int | None = Field(default=None, ge=1, description="so many ratings and corrections since the round before began")
    drift: DriftTrigger | None = Field(default=None, description="drift of the prompts; unset: not looked for")
    look_seconds: float = Field(default=30, gt=0, description="seconds between two looks")


class GateConfig(Section):
    """What a candidate must show. It is refused, too, where it is shown to be worse than production, item by item."""

    evaluate: Keys = Field(default={}, description="keys of evaluate: data, tasks, require, ...; empty: no evaluation")
    audit: Keys = Field(
        default={},
        description="keys of audit: suites, memorization, require, ...; `contamination` without `data` searches the new data",
    )
    margin: dict[str, float] = Field(
        default={},
        description="{TASK/METRIC or a suite: figure}: it must be shown to be worse by no more; else, not shown to be worse",
    )

    @model_validator(mode="after")
    def _requires(self) -> Self:
        if not self.evaluate.get("require") and not self.audit.get("require"):
            raise ValueError("nothing is promoted without a gate: set gate.evaluate.require, gate.audit.require or both")
        return self


class CanaryConfig(Section):
    """How long the candidate answers a share of the conversations before it gets them all; the share is the serving run's."""

    minutes: float = Field(default=10, ge=0, description="at least so long")
    requests: int = Field(default=50, ge=0, description="at least so many answers of the candidate")
    most_minutes: float = Field(default=60, gt=0, description="after so long it is judged by the answers that there are")
    max_error_rate: float = Field(default=0.02, ge=0, le=1, description="share of its answers that may fail")
    settle_minutes: float = Field(default=10, ge=0, description="how long the serving run may take to say that it serves it")


class RefreshConfig(JobConfig):
    """A run that learns from what a serving run is told; each step is a run of its own. `resources` are those of its driver."""

    watch: str = Field(description="the serving run, which captures")
    model: str = Field(
        default="production", description="the alias that is trained from and promoted to: production, NAME@production"
    )
    train: Keys = Field(description="keys of finetune, without model and data: steps, lora, batch, optim, resources, ...")
    align: Keys = Field(default={}, description="keys of align, without model and data; empty: corrections are not aligned to")
    least_pairs: int = Field(default=16, ge=1, description="with align: fewer corrected answers than these are not aligned to")
    gate: GateConfig = Field(description="what a candidate must show")
    canary: CanaryConfig | None = Field(default=CanaryConfig(), description="a share of the traffic first; null: none")
    data: Keys = Field(default={}, description="more keys of collect: unrated, most, decontaminate")
    replay: Keys = Field(
        default={}, description="conversations of before that are mixed in: {data: FILES, share: 0.3}; empty: none"
    )
    least_conversations: int = Field(default=8, ge=1, description="a round with fewer new conversations ends without training")
    trigger: TriggerConfig = Field(default=TriggerConfig(), description="what begins a round")
    rounds: int | None = Field(
        default=1, ge=1, description="rounds after which the run ends; null: it goes on until it is cancelled"
    )
    approve: bool = Field(default=False, description="wait for `ropewalk approve RUN` before a candidate gets traffic")

    @model_validator(mode="after")
    def _alias(self) -> Self:
        if self.model.partition("@")[2].isdigit():
            raise ValueError(f"model: {self.model!r} is a version and never changes; name an alias, such as production")
        return self

    def plan(self, label: str, group: str) -> Plan:
        """What makes the steps of a round, whose runs' names begin with `label`."""
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
        """The configuration of each step, with made-up paths in the place of what is to come. Raises ConfigError."""
        return self.plan("example", TO_COME).examples()

    def base(self, root: Path | None = None) -> Version:
        """The version that the alias points to now. Raises ConfigError where it points to none."""
        found = find_version(self.model, root)
        if found is None:
            raise ConfigError(f"model: there is no alias {self.model!r}; `ropewalk promote MODEL --to {self.alias}` makes one")
        return found

    @property
    def alias(self) -> str:
        """The alias, without the model's name."""
        return self.model.rpartition("@")[2]

    def children_resources(self) -> list[Resources]:
        """What the steps ask of the cluster."""
        return [config.resources for config in self.example_configs().values()]

    def extra_record(self, cluster_name: str) -> dict[str, Any]:
        """The cluster as the profile file describes it now: the driver may run where there is no such file."""
        own = load_profile(cluster_name)
        return {"clusters": {own.name: {"backend": own.backend, **own.options}}}

    def resolved(self) -> Self:
        """Return the configuration with the full id of the serving run, once every step's is right. Raises ConfigError."""
        self.example_configs()
        return self.model_copy(update={"watch": find_run(self.watch).id})

    def preflight(self, here: PathView = Path) -> None:
        """Raise ConfigError or DataError unless alias and inputs of the steps are there, as far as they are there by now."""
        self.base()

        def view(path: str) -> Path | None:
            return None if path.startswith(TO_COME) else here(path)

        for step, config in self.example_configs().items():
            if step in ("collect", "evaluate", "audit"):
                _check(step, config, view)


def _check(step: str, config: JobConfig, view: PathView) -> None:
    try:
        config.preflight(view)
    except ConfigError as error:
        raise ConfigError(f"{step}: {error}") from None

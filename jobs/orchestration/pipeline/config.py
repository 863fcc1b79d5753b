"""The keys of the `pipeline` job: steps, what each needs, and how a step names what another one makes."""

import copy
import json
import re
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from ropewalk.cluster.config import JobConfig, PathView, Resources, Section
from ropewalk.cluster.config_reader import apply_override, load_config, read_yaml
from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.orchestration.pipeline.references import Made, fill, referenced, refuse_misspelt
from ropewalk.jobs.registry import config_of, find_job

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class StepConfig(Section):
    """One job of a pipeline."""

    job: str = Field(description="the job: preprocess, pretrain, evaluate, command, ...")
    needs: list[str] = Field(
        default=[], description="steps that must have succeeded before; those that its keys refer to are added"
    )
    config: dict[str, Any] = Field(default={}, description="the job's keys, inline or a YAML file")
    set: dict[str, Any] = Field(default={}, description="dotted keys that replace those of config: {optim.lr: 1e-3}")

    @model_validator(mode="before")
    @classmethod
    def _one_cluster(cls, values: Any) -> Any:
        if isinstance(values, dict) and (found := next((key for key in ("on", "cluster") if key in values), None)):
            raise ValueError(
                f"`{found}`: all steps run on the cluster that the pipeline is submitted to (--on CLUSTER), whose scheduler"
                " starts each after those that it needs; submit a pipeline to each cluster, once the one before it is done"
            )
        return values

    @field_validator("config", mode="before")
    @classmethod
    def _read(cls, config: Any) -> Any:
        return read_yaml(Path(config).expanduser()) if isinstance(config, str) else config

    def values(self) -> dict[str, Any]:
        """The job's keys, with those of `set`. Raises ConfigError."""
        values = copy.deepcopy(self.config)
        for key, value in self.set.items():
            apply_override(values, f"{key}={json.dumps(value)}")
        return values


class PipelineConfig(JobConfig):
    """Jobs that need each other, submitted at once. `resources` are those of its own short job, which comes last."""

    steps: dict[str, StepConfig] = Field(
        min_length=1,
        description="the jobs by name. `model: {run: NAME}` or `model: NAME` is the model of another step, `data: NAME` its "
        "output, and {NAME.KEY} in any text a key of it; {NAME.run} is its run",
    )

    @field_validator("steps")
    @classmethod
    def _names(cls, steps: dict[str, StepConfig]) -> dict[str, StepConfig]:
        for name, step in steps.items():
            if not _NAME.fullmatch(name):
                raise ValueError(f"the name {name!r} may hold letters, digits, - and _ only")
            for other in step.needs:
                if other == name:
                    raise ValueError(f"{name} needs itself: it could never start; leave {name!r} out of its needs")
                if other not in steps:
                    raise ValueError(f"{name} needs {other!r}, which is no step; steps: {', '.join(steps)}")
        return steps

    def needs(self, name: str) -> list[str]:
        """The steps that a step needs: those that it names, and those that its keys refer to."""
        found = referenced(self.steps[name].values(), self.steps)
        return [other for other in self.steps if other != name and (other in self.steps[name].needs or other in found)]

    def order(self) -> list[str]:
        """The steps, each behind those that it needs. Raises ConfigError for a circle."""
        try:
            graph = {name: self.needs(name) for name in self.steps}
            return list(TopologicalSorter(graph).static_order())
        except CycleError as error:
            raise ConfigError(f"steps: {' needs '.join(reversed(error.args[1]))}: such a circle can never start") from None

    def step_name(self, name: str) -> str:
        """The name of a step's run."""
        return str(self.steps[name].values().get("name") or f"{self.name or 'pipeline'}-{name}")

    def step_config(self, name: str, made: Mapping[str, Made], more: Mapping[str, Any]) -> JobConfig:
        """The configuration of a step, where `made` says what the others make. `more` are keys that stand unless it sets them.

        Raises ConfigError that names the step.
        """
        step = self.steps[name]
        try:
            values = {"seed": self.seed, "name": self.step_name(name), **more, **fill(step.values(), made, f"steps.{name}")}
            return load_config(config_of(find_job(step.job)), values).resolved()
        except ConfigError as error:
            raise ConfigError(f"steps.{name}: {error}") from None

    def all_configs(self) -> dict[str, JobConfig]:
        """The configuration of each step, in order, with made-up runs in the place of those to come. Raises ConfigError."""
        made: dict[str, Made] = {}
        found: dict[str, JobConfig] = {}
        for name in self.order():
            found[name] = self.step_config(name, made, {})
            made[name] = Made(f"the-run-of-{name}", found[name].model_dump(mode="json"))
        self._refuse_misspelt()
        return found

    def _refuse_misspelt(self) -> None:
        """Raise ConfigError where a text almost names another step, or the step itself."""
        keys = {name: config_of(find_job(step.job)).model_fields for name, step in self.steps.items()}
        for name, step in self.steps.items():
            refuse_misspelt(step.values(), name, keys)

    def children_resources(self) -> list[Resources]:
        """What the steps ask of the cluster."""
        return [config.resources for config in self.all_configs().values()]

    @property
    def needs_others(self) -> bool:
        """A pipeline waits for its steps."""
        return True

    def resolved(self) -> Self:
        """Return the configuration as it is, once every step's has proved right. Raises ConfigError."""
        self.all_configs()
        return self

    def preflight(self, here: PathView = Path) -> None:
        """Check the inputs of every step, as far as no other step has yet to make them. Raises ConfigError, DataError."""
        configs = self.all_configs()
        outputs = [str(output) for config in configs.values() if (output := getattr(config, "output", None))]

        def view(path: str) -> Path | None:
            to_come = any(path == output or path.startswith(f"{output}/") for output in outputs)
            return None if to_come else here(path)

        for name, config in configs.items():
            texts = str(config.model_dump(mode="json"))
            if not any(f"the-run-of-{other}" in texts for other in self.steps):  # a run to come cannot be looked at
                try:
                    config.preflight(view)
                except ConfigError as error:
                    raise ConfigError(f"steps.{name}: {error}") from None

"""The keys of the `pipeline` job: its steps, their dependencies and configurations."""

import copy
import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ropewalk.cluster.config import HANGS, RANKS, WEIGHTS, JobConfig, Resources, UnsetGpus
from ropewalk.cluster.config_reader import apply_override, changed_keys, load_config, read_job_file
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.input_paths import PathView, Resolve
from ropewalk.cluster.section import Section
from ropewalk.jobs.orchestration.pipeline.references import StepResult, referenced_steps, refuse_misspelt, resolve_references
from ropewalk.jobs.registry import config_of, find_job

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class StepConfig(Section):
    """One job of a pipeline."""

    job: str = Field(description="name of the job: preprocess, pretrain, evaluate, command, ...")
    needs: list[str] = Field(
        default=[], description="steps that must succeed before this one; steps that its keys refer to are added"
    )
    config: dict[str, Any] = Field(default={}, description="keys of the job, inline or as a YAML file")
    set: dict[str, Any] = Field(default={}, description="dotted keys that override those of config: {optim.lr: 1e-3}")

    @model_validator(mode="before")
    @classmethod
    def _one_cluster(cls, values: Any) -> Any:
        if isinstance(values, dict) and (key_name := next((key for key in ("on", "cluster") if key in values), None)):
            raise ValueError(
                f"`{key_name}`: all steps run on the cluster that the pipeline is submitted to (--on CLUSTER), whose scheduler"
                " starts each after those that it needs; submit a pipeline to each cluster, once the one before it is done"
            )
        return values

    @field_validator("config", mode="before")
    @classmethod
    def _read(cls, config: Any, others: ValidationInfo) -> Any:
        return read_job_file(Path(config).expanduser(), str(others.data.get("job"))) if isinstance(config, str) else config

    def values(self) -> dict[str, Any]:
        """Return the job's keys, overridden by `set`. Raises ConfigError."""
        values = copy.deepcopy(self.config)
        for key, value in self.set.items():
            apply_override(values, f"{key}={json.dumps(value)}")
        return values


class PipelineConfig(JobConfig):
    """Jobs with dependencies, submitted together. `resources` are those of the pipeline's own short job, which runs last."""

    usual_keys = ("steps", "name", "seed")
    passes_packages_on = True
    hidden_keys = HANGS | RANKS | WEIGHTS

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
                raise ValueError(f"invalid name {name!r}; use letters, digits, - and _")
            for other in step.needs:
                if other == name:
                    raise ValueError(f"{name} needs itself and could never start; remove {name!r} from its needs")
                if other not in steps:
                    raise ValueError(f"{name} needs {other!r}, which is not a step; steps: {', '.join(steps)}")
        return steps

    def needs(self, name: str) -> list[str]:
        """Return the steps that a step depends on, by `needs` or by references in its keys."""
        references = referenced_steps(self.steps[name].values(), self.steps)
        return [other for other in self.steps if other != name and (other in self.steps[name].needs or other in references)]

    def order(self) -> list[str]:
        """Return the steps in dependency order. Raises ConfigError for a cycle."""
        try:
            graph = {name: self.needs(name) for name in self.steps}
            return list(TopologicalSorter(graph).static_order())
        except CycleError as error:
            raise ConfigError(f"steps: {' needs '.join(reversed(error.args[1]))}: this cycle can never start") from None

    def step_name(self, name: str) -> str:
        return str(self.steps[name].values().get("name") or f"{self.name or 'pipeline'}-{name}")

    def step_config(self, name: str, results: Mapping[str, StepResult], defaults: Mapping[str, Any]) -> JobConfig:
        """Return a step's configuration from results of the steps that it refers to, and default keys. Raises ConfigError."""
        step = self.steps[name]
        try:
            values = {
                "seed": self.seed,
                "name": self.step_name(name),
                **defaults,
                **resolve_references(step.values(), results, f"steps.{name}"),
            }
            return load_config(config_of(find_job(step.job)), values).resolved()
        except ConfigError as error:
            raise ConfigError(f"steps.{name}: {error}") from None

    def all_configs(self) -> dict[str, JobConfig]:
        """Return the configuration of each step, in order, with placeholders for run ids. Raises ConfigError."""
        results: dict[str, StepResult] = {}
        configs: dict[str, JobConfig] = {}
        for name in self.order():
            configs[name] = self.step_config(name, results, {})
            results[name] = StepResult(f"the-run-of-{name}", configs[name].model_dump(mode="json"))
        keys = {name: config_of(find_job(step.job)).model_fields for name, step in self.steps.items()}
        for name, step in self.steps.items():
            refuse_misspelt(step.values(), name, keys)
        return configs

    def children_resources(self) -> list[Resources]:
        return [config.resources for config in self.all_configs().values()]

    def unset_gpus(self) -> list[UnsetGpus]:
        """Return the steps that compute on a model and do not set `gpus`; `set` takes precedence over `config`."""
        return [
            part.inside(f"steps.{name}.{'set' if 'resources' in self.steps[name].set else 'config'}")
            for name, config in self.all_configs().items()
            for part in config.unset_gpus()
        ]

    @property
    def needs_others(self) -> bool:
        return True

    def own_code(self) -> bool:
        """Return True if a step needs code of the user's own."""
        jobs = [step.job for step in self.steps.values()]
        return any(":" in job for job in jobs) or any(config.own_code() for config in self.all_configs().values())

    def check_keys(self) -> None:
        """Raise ConfigError for keys of a step that are wrong."""
        self.all_configs()

    def with_inputs(self, resolve: Resolve) -> Self:
        """Return the pipeline with the inputs of its steps replaced that are not outputs of other steps. Raises ConfigError."""
        configs = self.all_configs()
        is_output = _outputs(configs)

        def resolve_step(name: str, key: str, value: str, need: str) -> str:
            pending = is_output(value) or any(f"the-run-of-{other}" in value for other in self.steps)
            return value if pending else resolve(f"steps.{name}.{key}", value, need)

        changed = {
            name: changed_keys(config, config.with_inputs(partial(resolve_step, name))) for name, config in configs.items()
        }
        steps = {
            name: step.model_copy(update={"set": {**step.set, **changed[name]}}) if changed[name] else step
            for name, step in self.steps.items()
        }
        return self.model_copy(update={"steps": steps})

    def preflight(self, here: PathView = Path) -> None:
        """Check the inputs of every step that are not outputs of other steps. Raises ConfigError, DataError."""
        configs = self.all_configs()

        for name, config in configs.items():
            is_output = _outputs({step: other for step, other in configs.items() if step != name})

            def view(path: str, is_output: Callable[[str], bool] = is_output) -> Path | None:
                return None if is_output(path) else here(path)

            texts = str(config.model_dump(mode="json"))
            if not any(
                f"the-run-of-{other}" in texts for other in self.steps
            ):  # it needs the run of another step, which does not exist yet
                try:
                    config.preflight(view)
                except ConfigError as error:
                    raise ConfigError(f"steps.{name}: {error}") from None


def _outputs(configs: Mapping[str, JobConfig]) -> Callable[[str], bool]:
    """Return a function that tells whether a path is, or is inside, an output of a step."""
    outputs = [str(output) for config in configs.values() if (output := getattr(config, "output", None))]
    return lambda path: any(path == output or path.startswith(f"{output}/") for output in outputs)

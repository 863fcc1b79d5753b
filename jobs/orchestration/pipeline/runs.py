"""Runs of a pipeline's steps: each is created once, submitted once, and resumed with the pipeline."""

from collections.abc import Sequence

from ropewalk.cluster.backends.base import Backend
from ropewalk.cluster.backends.profiles import load_backend
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import locked
from ropewalk.jobs.orchestration.pipeline.config import PipelineConfig
from ropewalk.jobs.orchestration.pipeline.references import StepResult
from ropewalk.jobs.runs.submit.children import create_child, find_child, start_child

LOCK = "steps.lock"  # in the pipeline's directory; serializes concurrent resumes


def config_of_run(pipeline: RunDir) -> PipelineConfig:
    """Return the pipeline's configuration."""
    return PipelineConfig.model_validate(pipeline.record["config"])


def step_runs(pipeline: RunDir, config: PipelineConfig) -> dict[str, RunDir]:
    """Return the run of each step that has one, in the order of the steps."""
    runs = {name: find_child(pipeline, name, config.step_name(name)) for name in config.order()}
    return {name: run for name, run in runs.items() if run is not None}


def submit_steps(pipeline: RunDir, after: Sequence[RunDir]) -> list[RunDir]:
    """Submit each step that has neither succeeded nor is active, to start after the steps it needs; return all runs.

    The first steps wait for the runs `after`. After a crash in here the next call submits the remaining steps.
    Raises RopewalkError.
    """
    config, cluster = config_of_run(pipeline), str(pipeline.record["cluster"])
    backend = load_backend(cluster)
    with locked(pipeline.path / LOCK):
        runs = _ensure_runs(pipeline, config, cluster, backend)
        for name, run in runs.items():
            needed = [runs[other] for other in config.needs(name)]
            start_child(backend, run, needed or list(after))
    return list(runs.values())


def _ensure_runs(pipeline: RunDir, config: PipelineConfig, cluster: str, backend: Backend) -> dict[str, RunDir]:
    """Return the run of each step, in order, creating those that do not exist."""
    runs = step_runs(pipeline, config)
    results: dict[str, StepResult] = {}
    ordered: dict[str, RunDir] = {}
    for name in config.order():
        step_config = config.step_config(
            name, results, {"wandb": {**pipeline.record["config"]["wandb"], "group": _group(pipeline)}}
        )
        run = runs.get(name)
        if run is None:
            job = config.steps[name].job
            # a failed step ends its dependents and the pipeline, but not independent steps
            run = create_child(pipeline, name, job, step_config, cluster=cluster, backend=backend, outlives_parent=True)
        ordered[name] = run
        results[name] = StepResult(run.id, step_config.model_dump(mode="json"))
    return ordered


def _group(pipeline: RunDir) -> str:
    """Return the W&B group of the steps: the configured group, else the pipeline's id."""
    return str(pipeline.record["config"]["wandb"].get("group") or pipeline.id)

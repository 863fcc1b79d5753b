"""Runs of a pipeline's steps, each created and submitted once, and its own job, which collects their results at the end."""

from collections.abc import Sequence

from ropewalk.cluster.backends.base import Backend
from ropewalk.cluster.backends.profiles import load_backend
from ropewalk.cluster.backends.submission import Dependency
from ropewalk.cluster.run.context import JobContext
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


def submit_steps(pipeline: RunDir, after: Sequence[Dependency]) -> list[RunDir]:
    """Submit each step that has neither succeeded nor is active, to start after the steps it needs; return all runs.

    The first steps wait for the runs `after`. After a crash in here the next call submits the remaining steps.
    Raises RopewalkError.
    """
    config, cluster = config_of_run(pipeline), str(pipeline.record["cluster"])
    backend = load_backend(cluster)
    with locked(pipeline.path / LOCK):
        runs = _ensure_runs(pipeline, config, cluster, backend)
        for name, run in runs.items():
            needed = [Dependency(runs[other]) for other in config.needs(name)]
            start_child(backend, run, needed or list(after))
    return list(runs.values())


def _ensure_runs(pipeline: RunDir, config: PipelineConfig, cluster: str, backend: Backend) -> dict[str, RunDir]:
    """Return the run of each step, in order, creating those that do not exist."""
    runs, wandb = step_runs(pipeline, config), pipeline.record["config"]["wandb"]
    results: dict[str, StepResult] = {}
    ordered: dict[str, RunDir] = {}
    for name in config.order():
        step_config = config.step_config(name, results, {"wandb": {**wandb, "group": wandb.get("group") or pipeline.id}})
        run = runs.get(name)
        if run is None:
            job = config.steps[name].job
            # a failed step ends its dependents and the pipeline, but not independent steps
            run = create_child(pipeline, name, job, step_config, cluster=cluster, backend=backend, outlives_parent=True)
        ordered[name] = run
        results[name] = StepResult(run.id, step_config.model_dump(mode="json"))
    return ordered


def main(context: JobContext) -> dict[str, object]:
    """Return the results of every step by name, each with its run; it is called only if all steps have succeeded."""
    runs = step_runs(context.run, context.config(PipelineConfig))
    return {"steps": {name: {**run.results(), "run": run.id} for name, run in runs.items()}}

"""The runs of a pipeline's steps: each is written down once, submitted once, and resumed with the pipeline."""

from collections.abc import Sequence

from ropewalk.cluster.backends.base import Backend
from ropewalk.cluster.backends.profiles import load_backend
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import locked
from ropewalk.jobs.orchestration.pipeline.config import PipelineConfig
from ropewalk.jobs.orchestration.pipeline.references import Made
from ropewalk.jobs.runs.submit.children import create_child, find_child, start_child

LOCK = "steps.lock"  # in the pipeline's directory: two who resume it at once take turns


def config_of_run(pipeline: RunDir) -> PipelineConfig:
    """The pipeline's keys."""
    return PipelineConfig.model_validate(pipeline.record["config"])


def step_runs(pipeline: RunDir, config: PipelineConfig) -> dict[str, RunDir]:
    """The run of each step that has one, in the order of the steps."""
    found = {name: find_child(pipeline, name, config.step_name(name)) for name in config.order()}
    return {name: run for name, run in found.items() if run is not None}


def submit_steps(pipeline: RunDir, after: Sequence[RunDir]) -> list[RunDir]:
    """Submit each step that has not succeeded and is not under way, once those that it needs have; the runs of all steps.

    The first steps wait for the runs `after`. Whoever is killed in here leaves steps that are submitted, or not yet: the next
    call goes on with the others. Raises RopewalkError.
    """
    config, cluster = config_of_run(pipeline), str(pipeline.record["cluster"])
    backend = load_backend(cluster)
    with locked(pipeline.path / LOCK):
        runs = _write_down(pipeline, config, cluster, backend)
        for name, run in runs.items():
            needed = [runs[other] for other in config.needs(name)]
            start_child(backend, run, needed or list(after))
    return list(runs.values())


def _write_down(pipeline: RunDir, config: PipelineConfig, cluster: str, backend: Backend) -> dict[str, RunDir]:
    """The run of each step, in order; those that there are not yet are made."""
    runs = step_runs(pipeline, config)
    made: dict[str, Made] = {}
    ordered: dict[str, RunDir] = {}
    for name in config.order():
        own = config.step_config(name, made, {"wandb": {**pipeline.record["config"]["wandb"], "group": _group(pipeline)}})
        made_by = runs.get(name)
        if made_by is None:
            job = config.steps[name].job
            # a step that fails ends those that need it, and the pipeline, but none beside it
            made_by = create_child(pipeline, name, job, own, cluster=cluster, backend=backend, outlives_parent=True)
        ordered[name] = made_by
        made[name] = Made(made_by.id, own.model_dump(mode="json"))
    return ordered


def _group(pipeline: RunDir) -> str:
    """The W&B group of the steps: the pipeline's own, unless its keys name one."""
    return str(pipeline.record["config"]["wandb"].get("group") or pipeline.id)

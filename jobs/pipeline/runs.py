"""The runs of a pipeline's steps: each is written down once, submitted once, and resumed with the pipeline."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from cluster.backends.base import Backend
from cluster.backends.profiles import load_backend
from cluster.errors import AlreadyRunningError
from cluster.run.directory import RunDir
from cluster.run.files import dated_label, locked
from cluster.spec import RunState
from jobs.pipeline.config import PipelineConfig
from jobs.pipeline.references import Made
from jobs.runs.status import GONE, settle
from jobs.runs.submit import make_record, project_record, resume, start_with_needed

LOCK = "steps.lock"  # in the pipeline's directory: two who resume it at once take turns
ORIGIN = ("created", "versions", "command", "code")  # of the pipeline's record: steps run what was submitted with it


def config_of_run(pipeline: RunDir) -> PipelineConfig:
    """The pipeline's keys."""
    return PipelineConfig.model_validate(pipeline.record["config"])


def step_runs(pipeline: RunDir, config: PipelineConfig) -> dict[str, RunDir]:
    """The run of each step that has one, in the order of the steps. They lie beside the pipeline, and say whose they are."""
    found: dict[str, RunDir] = {}
    for name in config.order():
        label = dated_label(config.step_name(name))
        for path in sorted(pipeline.path.parent.glob(f"{label}-*"), reverse=True):  # the newest are this pipeline's, as a rule
            if (path / "run.yaml").is_file():
                record = RunDir(path).record
                if (record.get("parent"), record.get("step")) == (pipeline.id, name):
                    found[name] = RunDir(path)
                    break
    return found


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
            _submit(backend, run, needed or list(after))
    return list(runs.values())


def _submit(backend: Backend, run: RunDir, needed: Sequence[RunDir]) -> None:
    if not run.attempts():
        start_with_needed(backend, run, run.resources(), needed)
        return
    state = settle(run)
    under_way = not state.state.final and state.state is not RunState.UNKNOWN and state.word not in GONE
    if not under_way and state.state is not RunState.SUCCEEDED:
        with suppress(AlreadyRunningError):  # somebody else was faster
            resume(run, after=needed)


def _write_down(pipeline: RunDir, config: PipelineConfig, cluster: str, backend: Backend) -> dict[str, RunDir]:
    """The run of each step, in order; those that there are not yet are made."""
    runs = step_runs(pipeline, config)
    made: dict[str, Made] = {}
    ordered: dict[str, RunDir] = {}
    for name in config.order():
        own = config.step_config(name, made, {"wandb": {**pipeline.record["config"]["wandb"], "group": _group(pipeline)}})
        made_by = runs.get(name)
        if made_by is None:
            origin = {key: pipeline.record[key] for key in ORIGIN if key in pipeline.record}
            record = {
                **make_record(config.steps[name].job, own, cluster, origin),
                **project_record(own, pipeline.path.parent if backend.ships_code else None),
                **_role(pipeline, name),
            }
            made_by = RunDir.create(str(own.name), record, pipeline.path.parent)
        ordered[name] = made_by
        made[name] = Made(made_by.id, own.model_dump(mode="json"))
    return ordered


def _role(pipeline: RunDir, name: str) -> Mapping[str, Any]:
    # a step that fails ends those that need it, and the pipeline, but none beside it
    return {"parent": pipeline.id, "step": name, "outlives_parent": True}


def _group(pipeline: RunDir) -> str:
    """The W&B group of the steps: the pipeline's own, unless its keys name one."""
    return str(pipeline.record["config"]["wandb"].get("group") or pipeline.id)

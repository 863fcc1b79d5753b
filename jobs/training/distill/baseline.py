"""The runs that a distillation is compared with: the same student by cross entropy alone, and both sides over more seeds.

They are runs of `distill` of their own, which stand beside it and which it waits for, so that no process has to wait for them.
"""

from collections.abc import Sequence
from typing import Any

from ropewalk.cluster.backends.profiles import load_backend
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import dated_label, locked
from ropewalk.jobs.runs.submit.children import start_child
from ropewalk.jobs.runs.submit.submit import make_record
from ropewalk.jobs.training.distill.config import DistillConfig

LOCK = "baseline.lock"  # in the run: two who resume it at once take turns
ORIGIN = ("created", "versions", "command", "code", "directory")  # of the run's record: they run what was submitted with it
LOCAL = "local"  # the cluster on which they run one after the other
DISTILLED, CROSS_ENTROPY = "distilled", "cross entropy"


def arms(config: DistillConfig, run_id: str) -> dict[str, DistillConfig]:
    """The runs that are needed by name, such as `cross entropy, seed 1`; this run is the first seed of the distilled ones."""
    if config.baseline is None:
        return {}
    seeds = seeds_of(config)
    values = {**config.model_dump(mode="json"), "baseline": None}
    label = config.name or "distill"
    found: dict[str, DistillConfig] = {}
    sides: tuple[tuple[str, dict[str, Any]], ...] = ((CROSS_ENTROPY, {"alpha": 1.0, "on_policy": None}), (DISTILLED, {}))
    for side, changes in sides:
        for seed in seeds if side == CROSS_ENTROPY else seeds[1:]:
            word = "ce" if side == CROSS_ENTROPY else "kd"
            group = {**values["wandb"], "group": values["wandb"]["group"] or run_id}
            own = {**values, **changes, "seed": seed, "name": f"{label}-{word}-{seed}", "wandb": group}
            found[arm_name(side, seed)] = DistillConfig.model_validate(own)
    return found


def seeds_of(config: DistillConfig) -> list[int]:
    """The seeds that both sides have."""
    assert config.baseline is not None
    return [(config.seed + number) % 2**32 for number in range(config.baseline.seeds)]


def arm_name(side: str, seed: int) -> str:
    """What a run is called in the comparison."""
    return f"{side}, seed {seed}"


def config_of_run(run: RunDir) -> DistillConfig:
    """The distillation's keys."""
    return DistillConfig.model_validate(run.record["config"])


def arm_runs(run: RunDir, config: DistillConfig) -> dict[str, RunDir]:
    """The runs of the arms that there are, by name. They lie beside the distillation, and say whose they are."""
    found: dict[str, RunDir] = {}
    for name, own in arms(config, run.id).items():
        label = dated_label(str(own.name))
        for path in sorted(run.path.parent.glob(f"{label}-*"), reverse=True):
            if (path / "run.yaml").is_file():
                record = RunDir(path).record
                if (record.get("parent"), record.get("arm")) == (run.id, name):
                    found[name] = RunDir(path)
                    break
    return found


def submit_arms(run: RunDir, after: Sequence[RunDir]) -> list[RunDir]:
    """Submit each arm that has not succeeded and is not under way; all of them. Safe to repeat. Raises RopewalkError."""
    config = config_of_run(run)
    wanted = arms(config, run.id)
    if not wanted:
        return []
    cluster = str(run.record["cluster"])
    backend = load_backend(cluster)
    with locked(run.path / LOCK):
        runs = arm_runs(run, config)
        for name, own in wanted.items():
            if name not in runs:
                runs[name] = RunDir.create(str(own.name), _record(run, name, own, cluster), run.path.parent)
        before = list(after)
        for name in wanted:
            start_child(backend, runs[name], before)
            if backend.cluster.backend == LOCAL:
                before = [*after, runs[name]]
    return [runs[name] for name in wanted]


def _record(run: RunDir, name: str, own: DistillConfig, cluster: str) -> dict[str, Any]:
    origin = {key: run.record[key] for key in ORIGIN if key in run.record}
    return {**make_record("distill", own, cluster, origin), "parent": run.id, "arm": name, "outlives_parent": True}

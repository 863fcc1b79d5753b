"""The configuration of the `sweep` job with its hooks of submission, and the context shared by the trials of an attempt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from ropewalk.cluster.backends.profiles import load_profile
from ropewalk.cluster.config import UnsetGpus
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.input_paths import PathView, Resolve
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.cluster.spec import Engine
from ropewalk.cluster.text import counted
from ropewalk.jobs.orchestration.sweep.checks import (
    check_submission,
    map_trial_inputs,
    refuse_unreachable,
    resolve,
    sample_config,
)
from ropewalk.jobs.orchestration.sweep.earlier import earlier_trials
from ropewalk.jobs.orchestration.sweep.keys import SweepKeys

CLUSTERS = "clusters.yaml"  # in the sweep's run: profiles of the clusters of driver and trials
ORDER = "order.json"  # in the driver's scratch folder: the reason why all trials must stop


class SweepConfig(SweepKeys):
    """The keys of a sweep with the hooks of submission; driver and actors read the resolved configuration."""

    passes_packages_on = True

    def resolved(self) -> Self:
        """Return the sweep with its base parsed by the job, its number of trials, and earlier trials. Raises ConfigError."""
        resolved = resolve(self)
        if not self.warm_start:
            return resolved
        return resolved.model_copy(update={"earlier_trials": tuple(earlier_trials(resolved))})

    def with_inputs(self, resolve: Resolve) -> Self:
        """Return the sweep with the inputs replaced that its base and the choices of its space name. Raises ConfigError."""
        return map_trial_inputs(self, resolve)

    def check_keys(self) -> None:
        """Raise ConfigError for keys of the searched job, with values of the space, that are wrong."""
        resolve(self)

    def own_code(self) -> bool:
        """Return True if the trials need code of the user's own."""
        return ":" in self.job or sample_config(self).own_code()

    def secret_names(self) -> Sequence[str]:
        """Return the sweep's secrets, and those of its trials if these run on its nodes."""
        names = [*self.secrets, *(sample_config(self).secret_names() if self.allocation else ())]
        return list(dict.fromkeys(names))

    def preferred_engine(self) -> Engine | None:
        """Return the Ray engine if trials run inside the sweep's allocation, which needs a Ray cluster."""
        return Engine.RAY if self.allocation else None

    def preflight(self, here: PathView = Path) -> None:
        """Check the trials' cluster, and run the checks of the searched job. Raises ConfigError, DataError."""
        if self.cluster is not None:
            load_profile(self.cluster)
        check_submission(self, here)

    def children_cluster(self) -> str | None:
        return self.cluster

    def unset_gpus(self) -> list[UnsetGpus]:
        """Return the trials, with a GPU for each rank, if they compute on a model and do not set `gpus`.

        With `allocation` the sweep's own GPUs are returned, which the trials share.
        """
        parts = [part.inside("base") for part in sample_config(self).unset_gpus()]
        trials = [replace(part, most=part.resources.ranks_per_node or 1) for part in parts]
        if not self.allocation or not trials:
            return trials
        share = tuple(f"{part.section}.gpus={part.most}" for part in trials)
        if self.resources.gpus:
            raise ConfigError(
                f"base.resources.gpus: not set, though the trials share the {counted(self.resources.gpus, 'GPU')} of each node of"
                f" the sweep; set {' '.join(share)} to compute on them, or base.resources.gpus=0 to compute on the CPU"
            )
        return [] if "gpus" in self.resources.model_fields_set else [UnsetGpus(resources=self.resources, others=share)]

    def extra_record(self, cluster_name: str) -> dict[str, Any]:
        """Return the cluster profiles of driver and trials, since the driver may run where there is no profile file."""
        driver, trials = (
            load_profile(cluster_name),
            load_profile("allocation" if self.allocation else self.cluster or cluster_name),
        )
        refuse_unreachable(driver, trials)
        profiles = {p.name: {"backend": p.backend, **p.options} for p in (driver, trials)}
        return {"trials_on": {"cluster": trials.name, "backend": trials.backend}, "clusters": profiles}


@dataclass(frozen=True, kw_only=True)
class SweepContext:
    """Paths and settings shared by all trials of one attempt of a sweep."""

    sweep: RunDir
    attempt: int
    config: SweepConfig
    cluster: str  # where the trials run
    scratch: Path  # the driver's scratch folder
    launcher: Path  # the folder of the process that starts trials' runs
    gpus: int = 0  # local GPUs per trial; 0 if trials run elsewhere or need none
    every_steps: int | None = None  # decision interval of the scheduler
    total_steps: int | None = None  # steps of a complete trial
    defaults: Mapping[str, Any]  # dotted keys of every trial, besides base and parameters
    origin: Mapping[str, Any]  # code, versions and command recorded by the sweep; trials run the same

    def stop_reason(self) -> str:
        """Return why all trials must stop (preempted, cancelled, budget, failures), or an empty string."""
        order = read_json(self.scratch / ORDER)
        return str(order["order"]) if order else "cancelled" if self.sweep.cancel_requested else ""

    def run(self, name: str) -> RunDir:
        """Return a trial's run by its id; its directory is beside the sweep's."""
        return RunDir(self.sweep.path.parent / name)

"""The configuration of the `sweep` job, with its hooks of submission."""

from pathlib import Path
from typing import Any, Self

from ropewalk.cluster.backends.profiles import load_profile
from ropewalk.cluster.config import PathView
from ropewalk.cluster.spec import Engine
from ropewalk.jobs.orchestration.sweep.checks import check_submission, refuse_unreachable, resolve
from ropewalk.jobs.orchestration.sweep.keys import SweepKeys


class SweepConfig(SweepKeys):
    """The keys of a sweep with the hooks of submission; driver and actors read the resolved configuration."""

    def resolved(self) -> Self:
        """Return the sweep with its base parsed by the job and its number of trials. Raises ConfigError."""
        return resolve(self)

    def preferred_engine(self) -> Engine | None:
        """Return the Ray engine if trials run inside the sweep's allocation, which needs a Ray cluster."""
        return Engine.RAY if self.allocation else None

    def preflight(self, here: PathView = Path) -> None:
        """Check the trials' cluster, and run the checks of the searched job. Raises ConfigError, DataError."""
        if self.cluster is not None:
            load_profile(self.cluster)
        check_submission(self, here)

    def children_cluster(self) -> str | None:
        """Return the cluster of the trials, or None if it is the sweep's own."""
        return self.cluster

    def extra_record(self, cluster_name: str) -> dict[str, Any]:
        """Return the cluster profiles of driver and trials, since the driver may run where there is no profile file."""
        driver, trials = (
            load_profile(cluster_name),
            load_profile("allocation" if self.allocation else self.cluster or cluster_name),
        )
        refuse_unreachable(driver, trials)
        profiles = {p.name: {"backend": p.backend, **p.options} for p in (driver, trials)}
        return {"trials_on": {"cluster": trials.name, "backend": trials.backend}, "clusters": profiles}

"""The configuration of the `sweep` job, and what its submission asks of it."""

from pathlib import Path
from typing import Any, Self

from ropewalk.cluster.backends.profiles import load_profile
from ropewalk.cluster.config import PathView
from ropewalk.cluster.spec import Engine
from ropewalk.jobs.orchestration.sweep.checks import check_submission, refuse_unreachable, resolve
from ropewalk.jobs.orchestration.sweep.keys import SweepKeys


class SweepConfig(SweepKeys):
    """The keys of a sweep, with the hooks of submission. Actors and the driver read it as submission has resolved it."""

    def resolved(self) -> Self:
        """The base as the job itself understands it, and the number of trials. Raises ConfigError."""
        return resolve(self)

    def preferred_engine(self) -> Engine | None:
        """The Ray engine for trials inside the sweep's own allocation: they need a Ray cluster over it."""
        return Engine.RAY if self.allocation else None

    def preflight(self, here: PathView = Path) -> None:
        """Check the trials' cluster, and what the searched job itself checks. Raises ConfigError, DataError."""
        if self.cluster is not None:
            load_profile(self.cluster)
        check_submission(self, here)

    def children_cluster(self) -> str | None:
        """The cluster that trials run on, if it is not the sweep's own."""
        return self.cluster

    def extra_record(self, cluster_name: str) -> dict[str, Any]:
        """The trials' cluster as the profile file describes it now: the driver may run where there is no such file."""
        own, trials = load_profile(cluster_name), load_profile("allocation" if self.allocation else self.cluster or cluster_name)
        refuse_unreachable(own, trials)
        known = {p.name: {"backend": p.backend, **p.options} for p in (own, trials)}
        return {"trials_on": {"cluster": trials.name, "backend": trials.backend}, "clusters": known}

"""Would it wait, and why: what Slurm says before anything is submitted; and whether the cluster is fit to run."""

from cluster.backend import Check
from cluster.config import Resources
from cluster.run_dir import RunDir
from slurm.commands import Slurm
from slurm.profile import SlurmProfile


def foresee(slurm: Slurm, run: RunDir, resources: Resources, profile: SlurmProfile) -> str:
    """Whether the run would wait, why, and what smaller request would start sooner; one sentence."""
    raise NotImplementedError


def checks(slurm: Slurm, profile: SlurmProfile) -> list[Check]:
    """What `doctor` looks at."""
    raise NotImplementedError

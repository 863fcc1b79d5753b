"""When would a script start: the one answer of `sbatch --test-only`, read."""

import re
import time
from dataclasses import dataclass
from pathlib import Path

from cluster.config import Resources
from cluster.errors import BackendError, CommandMissingError, SchedulerAwayError
from slurm.batch.script import flags, requests
from slurm.cluster_info import SECONDS
from slurm.commands import Slurm
from slurm.runtime.job_details import FOREVER, seconds_of

AT_ONCE_SECONDS = 30.0
_START = re.compile(r"Job \d+ to start at (\S+)(?: using \d+ processors on (?:nodes )?(\S+))?(?: in partition (\S+))?")


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What Slurm says of a request."""

    start: float = FOREVER  # seconds since the epoch
    nodes: str = ""
    partition: str = ""
    preempts: bool = False
    refusal: str = ""

    @property
    def at_once(self) -> bool:
        """It would not wait."""
        return self.start - time.time() < AT_ONCE_SECONDS


def forecast(slurm: Slurm, script: Path, asked: Resources, resources: Resources) -> Forecast:
    """What Slurm says of a script that asks for `asked`, were it to ask for `resources`."""
    before = requests(asked)
    changed = {name: value for name, value in requests(resources).items() if before.get(name) != value}
    accepted, said = slurm.try_sbatch(script, *flags(changed), seconds=SECONDS)
    if not accepted:
        return Forecast(refusal=_refusal(said))
    found = _START.search(said)
    if not found:
        return Forecast()
    return Forecast(start=seconds_of(found[1]), nodes=found[2] or "", partition=found[3] or "", preempts="Preempts:" in said)


def ping(slurm: Slurm) -> str:
    """What `scontrol ping` says, in 10 ms; other commands wait long for a dead controller.

    Raises SchedulerAwayError or CommandMissingError.
    """
    try:
        said = slurm.ask("scontrol", "ping", seconds=SECONDS)
    except (SchedulerAwayError, CommandMissingError):
        raise
    except BackendError as error:
        said = str(error)
    words = " ".join(said.partition("*")[0].removeprefix("scontrol: ").split())
    if " UP" not in words:
        raise SchedulerAwayError(f"its controller does not answer ({words})")
    return words


def _refusal(said: str) -> str:
    """Slurm's own words, without the commands' names."""
    lines = [re.sub(r"^(sbatch: )?(error: |fatal: |allocation failure: )?", "", line.strip()) for line in said.splitlines()]
    return "; ".join(dict.fromkeys(line.rstrip(".") for line in lines if line)) or "it does not say why"

"""The group of a training rank, and whether its process stays for the next group."""

from collections.abc import Iterator
from contextlib import contextmanager

from ropewalk.cluster.run.context import JobContext
from ropewalk.jobs.training.loop.config import TrainingConfig
from ropewalk.jobs.training.loop.rehearsal import rehearse
from ropewalk.sharding.group import Group, process_group


@contextmanager
def training_group(context: JobContext, config: TrainingConfig) -> Iterator[Group]:
    """Form the group, and tell the agent whether this process stays when it breaks.

    On GPUs it does not: NCCL's collectives may not end, and a CUDA error leaves a context that cannot be used. Nor does it with
    compiled layers, of which torch keeps only some versions in a process.
    """
    with process_group(config.parallel) as group:
        if context.line is not None:
            on_cpu = group.device.type == "cpu"
            context.line.announce(stays=on_cpu and not config.parallel.compile, rehearsal=rehearse if on_cpu else None)
        yield group


def begin_heartbeat(context: JobContext, config: TrainingConfig) -> None:
    """Let the agent watch this rank's phases from now on."""
    # a larger limit for collectives implies slow phases
    context.heart.begin(patience_seconds=3 * 60 * config.parallel.timeout_minutes)

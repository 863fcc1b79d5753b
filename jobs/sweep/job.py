"""Search for the best configuration of another job: Ray Tune decides, and each of its trials is a run."""

from cluster.run.context import JobContext
from jobs.sweep.config import SweepConfig


def main(context: JobContext) -> dict[str, object]:
    """Search until all trials are over; returns the best one. Goes on where an earlier attempt was killed."""
    from jobs.sweep.driver import Driver

    return Driver(context, context.config(SweepConfig)).drive()

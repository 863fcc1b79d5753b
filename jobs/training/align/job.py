"""Align a language model with preferences or rewards; resumable at any step and any number of ranks."""

from ropewalk.cluster.run.context import JobContext
from ropewalk.jobs.training.align.config import AlignConfig
from ropewalk.jobs.training.align.methods import METHODS, load_entry
from ropewalk.jobs.training.loop.groups import begin_heartbeat, training_group


def main(context: JobContext) -> dict[str, object]:
    """Train to the end, from the newest complete checkpoint if there is one; returns the results."""
    config = context.config(AlignConfig)
    begin_heartbeat(context, config)
    with training_group(context, config) as group:
        results: dict[str, object] = load_entry(METHODS[config.method].run)(context, config, group)
        return results

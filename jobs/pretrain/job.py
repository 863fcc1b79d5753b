"""Train a language model with FSDP on a data set; resumable at any step and any number of ranks."""

from cluster.run.context import JobContext
from jobs.pretrain.config import PretrainConfig


def main(context: JobContext) -> dict[str, object]:
    """Train to the end, from the newest complete checkpoint if there is one; returns the results."""
    from jobs.training.recipe import assemble
    from sharding.group import process_group

    config = context.config(PretrainConfig)
    # whoever lets a collective take longer knows of something that takes long
    context.heart.begin(patience_seconds=3 * 60 * config.fsdp.timeout_minutes)
    with process_group(config.fsdp.timeout_minutes) as group:
        return assemble(context, config, group).run()

"""Score a model on held-out text: bits per byte, perplexity, and samples of what it writes."""

from cluster.run.context import JobContext
from jobs.evaluate.config import EvaluateConfig


def main(context: JobContext) -> dict[str, object]:
    """Score the model; returns loss, bits per byte, perplexity, n, standard error, a unigram model's loss, samples."""
    from jobs.evaluate.perplexity import score
    from sharding.group import process_group

    config = context.config(EvaluateConfig)
    with process_group(config.fsdp.timeout_minutes) as group:
        return score(context, config, group)

"""Train a student on what its teacher says; resumable at any step and any number of ranks."""

from typing import Any

from ropewalk.cluster.run.context import JobContext
from ropewalk.jobs.training.distill.cache import cache_facts
from ropewalk.jobs.training.distill.config import DistillConfig
from ropewalk.jobs.training.distill.measure import measured
from ropewalk.jobs.training.distill.recipe import lesson
from ropewalk.jobs.training.distill.report import write_report
from ropewalk.jobs.training.distill.versus import versus
from ropewalk.jobs.training.loop.recipe import build_trainer
from ropewalk.jobs.training.loop.start import unpin_weights
from ropewalk.sharding.group import process_group


def main(context: JobContext) -> dict[str, object]:
    """Train to the end, from the newest complete checkpoint if there is one; returns the results with their table."""
    config = context.config(DistillConfig)
    # whoever lets a collective take longer knows of something that takes long
    context.heart.begin(patience_seconds=3 * 60 * config.parallel.timeout_minutes)
    with process_group(config.parallel) as group:
        found = lesson(context, config, group)
        trainer = build_trainer(context, config, group, found.recipe)
        results: dict[str, Any] = trainer.run()
        results |= measured(context, config, group, found, trainer.state.model)
        if group.is_main:
            if found.chunks is not None:
                results["teacher_logits"] = cache_facts(config, found.chunks, int(found.recipe.model.config.vocab_size))
            if config.baseline is not None and results["table"]:
                results |= versus(context, config, results)
            write_report(context, config, results)
            for weights in (found.recipe.model.weights, found.teacher.weights):
                unpin_weights(weights, context.run)
        return results

"""Train a student on its teacher's distribution; resumable at any step and any number of ranks."""

from typing import Any

from ropewalk.cluster.run.context import JobContext
from ropewalk.jobs.training.distill.cache import cache_facts
from ropewalk.jobs.training.distill.config import DistillConfig
from ropewalk.jobs.training.distill.measure import measure
from ropewalk.jobs.training.distill.recipe import plan_distillation
from ropewalk.jobs.training.distill.report import write_report
from ropewalk.jobs.training.distill.versus import versus
from ropewalk.jobs.training.loop.recipe import build_trainer
from ropewalk.jobs.training.loop.start import unpin_weights
from ropewalk.sharding.group import process_group


def main(context: JobContext) -> dict[str, object]:
    """Train to the end, from the newest complete checkpoint if there is one; returns the results with their table."""
    config = context.config(DistillConfig)
    # a larger limit for collectives implies slow phases
    context.heart.begin(patience_seconds=3 * 60 * config.parallel.timeout_minutes)
    with process_group(config.parallel) as group:
        distillation = plan_distillation(context, config, group)
        trainer = build_trainer(context, config, group, distillation.recipe)
        results: dict[str, Any] = trainer.run()
        results |= measure(context, config, group, distillation, trainer.state.model)
        if group.is_main:
            if distillation.chunks is not None:
                results["teacher_logits"] = cache_facts(
                    config, distillation.chunks, int(distillation.recipe.model.config.vocab_size)
                )
            if config.baseline is not None and results["table"]:
                results |= versus(context, config, results)
            write_report(context, config, results)
            for weights in (distillation.recipe.model.weights, distillation.teacher.weights):
                unpin_weights(weights, context.run)
        return results

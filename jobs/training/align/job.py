"""Align a language model with preferences or rewards; resumable at any step and any number of ranks."""

from collections.abc import Callable
from importlib import import_module

from ropewalk.cluster.run.context import JobContext
from ropewalk.jobs.training.align.config import AlignConfig, Method
from ropewalk.sharding.group import Group, process_group

Run = Callable[[JobContext, AlignConfig, Group], dict[str, object]]

# method → the function that trains by it, from the newest complete checkpoint on; imported when it is needed
METHODS: dict[Method, str] = {
    "dpo": "ropewalk.jobs.training.align.preferences.recipe:run",
    "ipo": "ropewalk.jobs.training.align.preferences.recipe:run",
    "kto": "ropewalk.jobs.training.align.preferences.recipe:run",
    "orpo": "ropewalk.jobs.training.align.preferences.recipe:run",
    "simpo": "ropewalk.jobs.training.align.preferences.recipe:run",
    "reward": "ropewalk.jobs.training.align.reward.recipe:run",
    "grpo": "ropewalk.jobs.training.align.grpo.recipe:run",
}


def main(context: JobContext) -> dict[str, object]:
    """Train to the end, from the newest complete checkpoint if there is one; returns the results."""
    config = context.config(AlignConfig)
    # whoever lets a collective take longer knows of something that takes long
    context.heart.begin(patience_seconds=3 * 60 * config.parallel.timeout_minutes)
    with process_group(config.parallel) as group:
        return _run_of(config.method)(context, config, group)


def _run_of(method: Method) -> Run:
    module, _, function = METHODS[method].partition(":")
    run: Run = getattr(import_module(module), function)
    return run

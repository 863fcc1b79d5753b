"""Align a language model with preferences or rewards; resumable at any step and any number of ranks."""

from collections.abc import Callable
from importlib import import_module

from cluster.run.context import JobContext
from jobs.align.config import AlignConfig, Method
from sharding.group import Group, process_group

Run = Callable[[JobContext, AlignConfig, Group], dict[str, object]]

# method → the function that trains by it, from the newest complete checkpoint on; imported when it is needed
METHODS: dict[Method, str] = {
    "dpo": "jobs.align.preferences.recipe:run",
    "ipo": "jobs.align.preferences.recipe:run",
    "kto": "jobs.align.preferences.recipe:run",
    "orpo": "jobs.align.preferences.recipe:run",
    "simpo": "jobs.align.preferences.recipe:run",
    "reward": "jobs.align.reward.recipe:run",
    "grpo": "jobs.align.rollouts.recipe:run",
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

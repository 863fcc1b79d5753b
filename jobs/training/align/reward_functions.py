"""Rewards by name: built-in ones, those of the entry-point group, and functions as module:function.

A reward is called as `reward(answer, record)`: the text of an answer, and the prompt's record with all its fields. It returns a
number, or None if it does not apply to this answer. An entry point is a callable that takes the options of the job file and
returns such a function.
"""

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from ropewalk.cluster.errors import ConfigError

GROUP = "ropewalk.rewards"
Reward = Callable[[str, Mapping[str, Any]], float | None]
BUILT_IN = {
    "exact_match": "ropewalk.jobs.training.align.grpo.rewards.built_in:exact_match",
    "regex": "ropewalk.jobs.training.align.grpo.rewards.built_in:regex",
    "math_verify": "ropewalk.jobs.training.align.grpo.rewards.built_in:math_verify",
    "reasoning_gym": "ropewalk.jobs.training.align.grpo.rewards.built_in:reasoning_gym",
    "length": "ropewalk.jobs.training.align.grpo.rewards.built_in:length",
    "model": "ropewalk.jobs.training.align.grpo.rewards.built_in:model",
}


def check_name(name: str) -> None:
    """Raise ConfigError with the nearest name unless this is a reward. A module:function is imported only in the run."""
    if ":" in name or name in BUILT_IN:
        return
    names = sorted({*BUILT_IN, *(point.name for point in entry_points(group=GROUP))})
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"rewards: unknown reward {name!r}{hint}; known: {', '.join(names)}, or module:function")


def make_reward(name: str, options: Mapping[str, Any]) -> Reward:
    """Create a reward with these options. Raises ConfigError if it cannot be imported or refuses them."""
    try:
        if ":" in name and name not in BUILT_IN:
            function: Reward = _import(name)
            return partial(function, **options) if options else function
        factory = _import(BUILT_IN[name]) if name in BUILT_IN else _entry_point(name)
        reward: Reward = factory(**options)
        return reward
    except ConfigError:
        raise
    except Exception as error:  # importing a user's module may raise anything
        raise ConfigError(f"rewards: {name}: {type(error).__name__}: {error}; correct its name, options or module") from error


def _import(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def _entry_point(name: str) -> Any:
    for point in entry_points(group=GROUP, name=name):
        return point.load()
    raise ConfigError(f"rewards: {name}: no such reward is installed where the run executes")

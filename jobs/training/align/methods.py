"""The methods of `align`, one row each. Losses and recipes are named, so that reading a job file imports no torch."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

_LOSSES = "ropewalk.jobs.training.align.preferences.losses"


@dataclass(frozen=True, kw_only=True)
class Method:
    """An alignment method. A new loss of pairs is one function and one row of METHODS.

    `loss` names a function (answers, *, beta, KEY, ...) -> Scored, which gets `beta` and `keys` of the job file by name.
    """

    run: str = (
        "ropewalk.jobs.training.align.preferences.recipe:run"  # trains by the method, from the newest complete checkpoint on
    )
    loss: str | None = None  # None: the recipe has a loss of its own
    beta: float | None = None  # published default; None: not a key of this method
    needs_reference: bool = True
    paired: bool = True  # a record is a pair of answers; False: one labelled answer
    generates: bool = True  # the trained model continues the prompts of `samples`
    keys: tuple[str, ...] = ()  # keys of the configuration that the loss takes, beside beta

    @property
    def optional_keys(self) -> set[str]:
        """The keys of this method that other methods refuse, lest they be ignored silently."""
        return {*self.keys, *(["beta"] if self.beta is not None else ()), *(["samples"] if self.generates else ())}


METHODS = {
    "dpo": Method(loss=f"{_LOSSES}:dpo", beta=0.1, keys=("loss", "label_smoothing", "length_normalized")),
    "ipo": Method(loss=f"{_LOSSES}:ipo", beta=0.1, keys=("length_normalized",)),
    "kto": Method(loss=f"{_LOSSES}:kto", beta=0.1, paired=False, keys=("desirable_weight", "undesirable_weight")),
    "orpo": Method(loss=f"{_LOSSES}:orpo", beta=0.1, needs_reference=False),
    "simpo": Method(loss=f"{_LOSSES}:simpo", beta=2.0, needs_reference=False, keys=("gamma",)),
    "reward": Method(
        run="ropewalk.jobs.training.align.reward.recipe:run",
        loss=f"{_LOSSES}:bradley_terry",
        needs_reference=False,
        generates=False,
        keys=("label_smoothing",),
    ),
    "grpo": Method(run="ropewalk.jobs.training.align.grpo.recipe:run"),
}
OPTIONAL_KEYS = sorted(set().union(*(method.optional_keys for method in METHODS.values())))


def methods_with(key: str) -> list[str]:
    """Return the names of the methods that use a key."""
    return [name for name, method in METHODS.items() if key in method.optional_keys]


def methods_without_reference() -> list[str]:
    """Return the names of the methods that compare with no reference model."""
    return [name for name, method in METHODS.items() if not method.needs_reference]


def default_betas() -> str:
    """Describe the default of `beta` by method, for help texts."""
    names: dict[float, list[str]] = {}
    for name, method in METHODS.items():
        if method.beta is not None:
            names.setdefault(method.beta, []).append(name)
    return "; ".join(f"{beta:g} for {', '.join(methods)}" for beta, methods in names.items())


def load_entry(entry: str) -> Any:
    """Import the function that "module:function" names."""
    module, _, function = entry.partition(":")
    return getattr(import_module(module), function)

"""The reference model: the model as it was at the start of the run."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import nn

from ropewalk.cluster.run.context import JobContext
from ropewalk.jobs.training.align.config import AlignConfig
from ropewalk.jobs.training.loop.model import ModelPlan, build_model
from ropewalk.jobs.training.loop.weights.lora import adapter_off
from ropewalk.sharding.group import Group

T = TypeVar("T")


class Reference:
    """Evaluates the reference without gradients: a frozen copy, or without one the trained model with its adapter disabled."""

    def __init__(self, copy: nn.Module | None) -> None:
        self._copy = copy

    @torch.no_grad()
    def __call__(self, model: nn.Module, compute: Callable[[nn.Module], T]) -> T:
        if self._copy is not None:
            return compute(self._copy)
        was_training = model.training
        model.eval()  # no dropout of the base
        try:
            with adapter_off(model):
                return compute(model)
        finally:
            model.train(was_training)


def open_reference(kind: str, context: JobContext, config: AlignConfig, group: Group, plan: ModelPlan) -> Reference:
    """Open the reference: the model's own `adapter` disabled, or a frozen `copy` on the same mesh."""
    return Reference(None if kind == "adapter" else first_model(context, config, group, plan))


def first_model(context: JobContext, config: AlignConfig, group: Group, plan: ModelPlan) -> nn.Module:
    """Build the model with its first weights, frozen, without an adapter, sharded on the same mesh."""
    plain = replace(plan, adapter=None, adapter_keys=None, draws=False)
    return build_model(plain, context.run, group, config.parallel, config.precision, trainable=False)

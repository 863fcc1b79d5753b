"""What the model is compared with: log-probabilities of answers under the model as it was."""

from collections.abc import Callable

import torch
from torch import nn

from cluster.run.context import JobContext
from jobs.align.config import AlignConfig
from jobs.align.preferences.log_probs import answer_log_probs
from jobs.training.batch import Batch
from jobs.training.model import ModelPlan, build_model
from sharding.group import Group

# a batch → log-probabilities of its answers [B, A] under the reference, without a gradient
Reference = Callable[[nn.Module, Batch], torch.Tensor]


def frozen_copy(context: JobContext, config: AlignConfig, group: Group, plan: ModelPlan) -> Reference:
    """The model's first weights, frozen, sharded on the same mesh."""
    copy = build_model(plan, context.run, group, config.parallel, config.precision, trainable=False)

    @torch.no_grad()
    def of(model: nn.Module, batch: Batch) -> torch.Tensor:
        return answer_log_probs(copy, batch).sums

    return of

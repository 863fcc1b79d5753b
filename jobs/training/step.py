"""One training step on one rank: backward over its micro-batches, one small all-reduce, update."""

from typing import NamedTuple

import torch
import xxhash
from torch import nn

from jobs.training.config import TrainingConfig
from jobs.training.objective import Objective
from jobs.training.optimizer import adamw, set_learning_rate
from sharding.batch_plan import BatchPlan
from sharding.fsdp import accumulates_sharded, reshards, set_pass, units_of
from sharding.group import Group, counts_piece
from sharding.state import State, model_state, optimizer_state, prepare_adam


class Agreed(NamedTuple):
    """What all ranks know of a step after their one small all-reduce."""

    loss: float  # nats a token over the global batch
    gradient_norm: float
    weight: float  # tokens of the global batch
    stop: bool
    save_failed: bool


class Stepper:
    """Model and optimizer, and how a global batch moves them. Gradients are sums over tokens until `update`
    divides them by the global weight, so that uneven ranks and micro-batches count rightly."""

    def __init__(self, model: nn.Module, objective: Objective, config: TrainingConfig, group: Group, *, dropout: bool) -> None:
        self.model, self.objective, self.config, self.group, self.dropout = model, objective, config, group, dropout
        self.optimizer = adamw(model, config.optim)
        prepare_adam(self.optimizer)
        self.tensors: State = model_state(model) | optimizer_state(model, self.optimizer)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._counted = [p for p in self._parameters if counts_piece(p)]  # once each, however many ranks hold it
        self._units = units_of(model)
        self._reshard = reshards(model, config.fsdp, group.device)
        self._sharded = accumulates_sharded(model, config.fsdp)
        self.plan = BatchPlan(
            global_batch=config.batch.global_batch,
            micro_batch=config.batch.micro_batch,
            world_size=group.data_size,
            rank=group.data_rank,
        )

    def backward(self, sequences: torch.Tensor, step: int) -> tuple[torch.Tensor, float]:
        """Sum the gradients of this rank's sequences; returns their summed loss and their weight."""
        sequences = sequences.to(self.group.device, non_blocking=True)
        loss_sum, weight = torch.zeros((), dtype=torch.float64, device=self.group.device), 0.0
        passes = self.plan.micro_batches(len(sequences))
        for number, rows in enumerate(passes):
            if len(passes) > 1:
                set_pass(self._units, last=number == len(passes) - 1, reshard=self._reshard, sharded=self._sharded)
            if self.dropout:
                self._seed(step, number)
            batch = sequences[rows]
            if len(batch):
                loss = self.objective.loss_sum(self.model, batch)
                loss_sum += loss.detach()
                weight += self.objective.weight(batch)
            else:  # a pass of weight zero: the other ranks' collectives need it
                loss = self.objective.loss_sum(self.model, sequences.new_zeros(1, sequences.shape[1])) * 0.0
            torch.autograd.backward(loss)
        return loss_sum, weight

    def _seed(self, step: int, number: int) -> None:
        """Dropout is a function of what is computed, so that a resumed step draws the same."""
        words = f"{self.config.seed}:{step}:{self.group.data_rank}:{number}"
        torch.manual_seed(xxhash.xxh3_64_intdigest(words.encode()) >> 1)

    def agree(self, loss_sum: torch.Tensor, weight: float, *, stop: bool, save_failed: bool) -> Agreed:
        """The global loss and gradient norm, and whether any rank must stop or could not save."""
        norm = torch.nn.utils.get_total_norm(self._gradients(self._counted)).to(self.group.device, torch.float64)
        if not self.group.counts_samples:
            loss_sum, weight = torch.zeros_like(loss_sum), 0.0
        mine = torch.tensor([weight, float(stop), float(save_failed)], dtype=torch.float64, device=self.group.device)
        total = self.group.sum(torch.cat((torch.stack((loss_sum, norm * norm)), mine)))
        loss, square, total_weight, stops, failures = total.tolist()
        return Agreed(loss / total_weight, square**0.5 / total_weight, total_weight, stops > 0, failures > 0)

    def update(self, agreed: Agreed, learning_rate: float) -> None:
        """Clip, and take the optimizer's step."""
        clip = self.config.optim.grad_clip
        factor = min(1.0, clip / (agreed.gradient_norm + 1e-6)) if clip else 1.0
        torch._foreach_mul_(self._gradients(self._parameters), factor / agreed.weight)
        set_learning_rate(self.optimizer, learning_rate)
        self.optimizer.step()
        self.optimizer.zero_grad()

    @staticmethod
    @torch.no_grad()
    def _gradients(parameters: list[nn.Parameter]) -> list[torch.Tensor]:
        # gradients are DTensors; their plain shards spare one dispatch each
        return [p.grad.to_local() for p in parameters if p.grad is not None]  # type: ignore[attr-defined]

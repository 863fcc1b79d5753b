"""One training step on one rank: backward over its micro-batches, one small all-reduce, update."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import xxhash
from torch import nn

from ropewalk.jobs.training.loop.batch import Batch, num_samples, rows, to_device
from ropewalk.jobs.training.loop.config import TrainingConfig
from ropewalk.jobs.training.loop.objective import Means, Objective, TermSums
from ropewalk.jobs.training.loop.update.digests import StateDigests
from ropewalk.jobs.training.loop.update.optimizer import set_learning_rate
from ropewalk.jobs.training.loop.update.spikes import LossStatistics, SpikeDetector
from ropewalk.jobs.training.loop.update.state import TrainState
from ropewalk.jobs.training.loop.update.step_clock import RankRow, StepClock, StepPhase, rows_of
from ropewalk.sharding.batch_plan import BatchPlan
from ropewalk.sharding.checkpoints.state import trained_parameters
from ropewalk.sharding.fsdp import accumulates_sharded, fsdp_modules, set_micro_batch, should_reshard_after_forward
from ropewalk.sharding.group import Group, counts_piece
from ropewalk.sharding.host_copy import HostCopy
from ropewalk.sharding.tensor_parallel import sum_partial_gradients


class StepStats(NamedTuple):
    """Statistics of a step that all ranks share after one small all-reduce, on the host."""

    step: int  # the number of the step, from 1
    position: int  # of the first sample after it
    learning_rate: float
    applied: bool  # False: the model was not updated, since the loss is not finite, spikes or has no weight
    loss: float  # mean over the global batch; NaN if its weight is 0
    weight: float  # number of tokens, pairs or sequences that count
    gradient_norm: float
    stop: bool  # requested on some rank
    save_failed: bool  # on some rank
    metrics: dict[str, float]
    watch: LossStatistics  # after the step
    ended: float  # seconds on the clock of time.perf_counter
    changed: bool = False  # the state of some rank, since the update before
    inspection: int = 0  # request to look into the run, see `Inspection`; 0: none
    ranks: Sequence[RankRow] = ()  # of all ranks, in a step with an exchange


class DeviceStats(NamedTuple):
    """The statistics on the device, the same on all ranks; to read them is to wait for the step."""

    applied: torch.Tensor  # 1.0 or 0.0, as the other two without dimensions
    weight: torch.Tensor
    gradient_norm: torch.Tensor
    values: torch.Tensor  # all statistics


class PendingStep(NamedTuple):
    """A step that the device may still compute."""

    step: int
    position: int
    learning_rate: float
    metric_names: Sequence[str]
    values: HostCopy  # of DeviceStats
    layers: HostCopy | None
    exchanged: int = 0  # of the values, the last ones: see `StepClock`

    def read(self) -> StepStats:
        """Return the statistics, once the step has ended."""
        applied, norm, stops, failures, inspection, changed, *values = self.values.read()
        ranks = rows_of(values[len(values) - self.exchanged :])
        del values[len(values) - self.exchanged :]
        watch, means = LossStatistics.of(values[:4]), Means.of(values[4:], self.metric_names)
        return StepStats(
            step=self.step,
            position=self.position,
            learning_rate=self.learning_rate,
            applied=applied > 0,
            loss=means.loss,
            weight=means.weight,
            gradient_norm=norm,
            stop=stops > 0,
            save_failed=failures > 0,
            changed=changed > 0,
            inspection=int(inspection),
            metrics=means.metrics,
            watch=watch,
            ended=self.values.ended,
            ranks=ranks,
        )


class TrainStep:
    """Backward, reduction and update for a global batch.

    Gradients are sums until `update` divides them by the global weight, so that ranks and micro-batches of different
    weights count correctly. Nothing is read on the host: a step that must not be applied is masked on the device.
    """

    def __init__(
        self, state: TrainState, objective: Objective, filler: Batch, config: TrainingConfig, group: Group, *, dropout: bool
    ) -> None:
        self.state, self.objective, self.config, self.group, self.dropout = state, objective, config, group, dropout
        self.plan = BatchPlan.of(config.batch, group)
        self._filler = to_device(filler, group.device)
        self._parameters = trained_parameters(state.model, state.optimizer)
        self._counted = [p for p in self._parameters if counts_piece(p, group)]  # each once, if several ranks hold it
        self._modules = fsdp_modules(state.model)
        self._reshard = should_reshard_after_forward(state.model, config.parallel, group.device)
        self._sharded = accumulates_sharded(state.model, config.parallel)
        self._clip = torch.tensor(config.optim.grad_clip, dtype=torch.float64, device=group.device)
        self.detector = SpikeDetector(config.anomaly, group.device)
        self.clock = StepClock(group, self._modules)
        keys = config.integrity
        self.digests = StateDigests(state, at_rest=keys.at_rest) if keys is not None else None

    def backward(self, batch: Batch, step: int) -> TermSums:
        """Sum the gradients of this rank's samples; returns their summed loss, weight and metrics."""
        batch = to_device(batch, self.group.device)
        sums = TermSums(self.objective.metric_names, self.group.device)
        micro_batches = self.plan.micro_batches(num_samples(batch))
        for number, which in enumerate(micro_batches):
            if len(micro_batches) > 1:
                last = number == len(micro_batches) - 1
                set_micro_batch(self._modules, last=last, reshard=self._reshard, sharded=self._sharded)
            if self.dropout:
                self._seed(step, number)
            if which.start < which.stop:
                terms = self.objective(self.state.model, rows(batch, which))
                sums.add(terms)
                loss = terms.loss_sum
            else:  # take part in the other ranks' collectives
                loss = self.objective(self.state.model, self._filler).loss_sum * 0.0
            torch.autograd.backward(loss)
        sum_partial_gradients(self.state.model, self.group)
        self.clock.end(StepPhase.FORWARD_BACKWARD)
        return sums

    def _seed(self, step: int, number: int) -> None:
        """Seed dropout from the position of the computation, so that a resumed step draws the same."""
        key = f"{self.config.seed}:{step}:{self.group.data_rank}:{number}"
        torch.manual_seed(xxhash.xxh3_64_intdigest(key.encode()) >> 1)

    def reduce_stats(self, sums: TermSums, *, stop: bool, save_failed: bool, inspection: int = 0) -> DeviceStats:
        """Reduce loss, metrics and gradient norm, and whether any rank must stop or failed to save; decide about the update."""
        device = self.group.device
        norm = torch.nn.utils.get_total_norm(self._gradients(self._counted)).to(device, torch.float64)
        flags = torch.zeros(4, dtype=torch.float64, device=device)
        flags[0], flags[1] = float(stop), float(save_failed)
        if inspection:
            flags[2] = float(inspection)
        if self.digests is not None and self.digests.at_rest:
            self.digests.compare()
            flags[3] = self.digests.changed.any()
        values = sums.values if self.group.counts_samples else torch.zeros_like(sums.values)
        ranks = self.clock.values(self.state.progress.step + 1)
        total = torch.cat(((norm * norm)[None], flags, values, ranks))
        with self.clock.waiting():
            total = self.group.all_reduce_sum(total)
        square, loss_sum, weight = total[0], total[5], total[6]
        norm_of_mean = square.sqrt() / weight
        applied = self.detector.accept(loss_sum / weight, norm_of_mean).double()
        self.clock.end(StepPhase.REDUCE)
        values = torch.cat((torch.stack((applied, norm_of_mean)), total[1:5], self.detector.values, total[5:]))
        return DeviceStats(applied, weight, norm_of_mean, values)

    def pending(
        self, stats: DeviceStats, learning_rate: float, layers: torch.Tensor | None, earlier: HostCopy | None
    ) -> PendingStep:
        """Start to copy the figures of the step that has just been counted; `earlier`: those of the step before."""
        progress, names = self.state.progress, self.objective.metric_names
        copies = HostCopy(stats.values, earlier), HostCopy(layers) if layers is not None else None
        return PendingStep(progress.step, progress.position, learning_rate, names, *copies, self.clock.exchanged(progress.step))

    def update(self, stats: DeviceStats, learning_rate: float) -> None:
        """Update the model, if the step is to be applied, and free the gradients."""
        factor = torch.ones_like(self._clip)
        if self.config.optim.grad_clip:
            factor = (self._clip / (stats.gradient_norm + 1e-6)).clamp(max=1.0)
        gradients = self._gradients(self._parameters)
        torch._foreach_mul_(gradients, (factor / stats.weight).to(self._parameters[0].dtype))
        set_learning_rate(self.state.optimizer, learning_rate)
        zeros = self._zeros() if self.config.keep_zeros else []
        self.state.optimizer.step(applied=stats.applied)
        if self.state.ema is not None:
            self.state.ema.update(self.state.progress.step + 1, stats.applied)
        for weight, mask in zeros:
            weight.masked_fill_(mask, 0.0)
        self.state.optimizer.zero_grad()
        if self.digests is not None:
            self.digests.end_update()
        self.clock.end(StepPhase.UPDATE)

    @torch.no_grad()
    def _zeros(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return this rank's matrices with masks of their zeros, before the update: zeros stay zero, also after a resume."""
        matrices = [parameter.to_local() for parameter in self._parameters if parameter.ndim > 1]  # type: ignore[attr-defined]
        return [(weight, weight == 0) for weight in matrices]

    @staticmethod
    @torch.no_grad()
    def _gradients(parameters: list[nn.Parameter]) -> list[torch.Tensor]:
        # the local shards of DTensors avoid a dispatch for each
        return [p.grad.to_local() for p in parameters if p.grad is not None]  # type: ignore[attr-defined]

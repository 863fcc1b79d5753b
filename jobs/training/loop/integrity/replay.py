"""One micro-batch that all ranks compute: a rank whose products are wrong disagrees with the others."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from ropewalk.jobs.training.loop.batch import Batch, num_samples, rows, to_device
from ropewalk.jobs.training.loop.integrity.verdict import Finding
from ropewalk.jobs.training.loop.update.digests import digest
from ropewalk.jobs.training.loop.update.step import TrainStep
from ropewalk.sharding.fsdp import decoder_layers, reshard_all

COMPUTATION = "computation"


class Replay:
    """Forward passes of all ranks on rank 0's first micro-batch, with the weights as they are."""

    def __init__(self, train_step: TrainStep) -> None:
        self._step = train_step

    def findings(self, batch: Batch) -> list[Finding]:
        """Return the ranks whose outputs differ from those of most. `batch`: this rank's samples of a step."""
        batch = self._shared(batch)
        outputs = self._outputs(batch)
        return judge_outputs(outputs, self._outputs(batch) if len(set(outputs)) > 1 else outputs)

    def _shared(self, batch: Batch) -> Batch:
        """Return rank 0's first micro-batch on every rank."""
        step = self._step
        batch = rows(to_device(batch, step.group.device), step.plan.micro_batches(num_samples(batch))[0])
        kinds = {name: (str(tensor.dtype), list(tensor.shape)) for name, tensor in batch.items()}
        kinds = step.group.broadcast_object(kinds)
        shared = {}
        for name, (dtype, shape) in kinds.items():
            tensor = batch[name].contiguous() if step.group.is_main else _empty(dtype, shape, step.group.device)
            dist.broadcast(tensor, src=0)
            shared[name] = tensor
        return shared

    @torch.no_grad()
    def _outputs(self, batch: Batch) -> list[int]:
        """Return a digest of each rank's loss and outputs of layers."""
        step, model, digests = self._step, self._step.state.model, list[torch.Tensor]()

        def note(_module: Any, _inputs: Any, output: Any) -> None:
            digests.append(digest([output[0] if isinstance(output, tuple) else output]))

        # compiled layers would be compiled again with a hook
        layers = [] if step.config.parallel.compile else decoder_layers(model)
        hooks = [layer.register_forward_hook(note) for layer in layers]
        was_training = model.training
        model.eval()
        try:
            loss = step.objective(model, batch).loss_sum
        finally:
            model.train(was_training)
            for hook in hooks:
                hook.remove()
        reshard_all(model)
        table = torch.zeros(step.group.world_size, dtype=torch.int64, device=step.group.device)
        table[step.group.rank] = digest([loss.detach(), *digests])
        result: list[int] = step.group.all_reduce_sum(table).tolist()
        return result


def judge_outputs(outputs: Sequence[int], repeated: Sequence[int]) -> list[Finding]:
    """Return the ranks whose output is wrong: those that differ from most, else those that do not repeat their own."""
    (usual, number), *others = Counter(outputs).most_common()
    if not others:
        return []
    wrong = [rank for rank, output in enumerate(outputs) if output != usual]
    if 2 * number <= len(outputs):
        wrong = [rank for rank, (first, second) in enumerate(zip(outputs, repeated, strict=True)) if first != second]
    if not wrong:
        return [Finding(COMPUTATION, None, tuple(range(len(outputs))))]
    return [Finding(COMPUTATION, rank) for rank in wrong]


def _empty(dtype: str, shape: Sequence[int], device: torch.device) -> torch.Tensor:
    return torch.empty(*shape, dtype=getattr(torch, dtype.removeprefix("torch.")), device=device)

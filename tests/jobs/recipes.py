"""Training jobs that exist as tests: what the loop must carry besides next-token pretraining."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.tensor import DTensor

from ropewalk.cluster.run.context import JobContext
from ropewalk.jobs.training.finetune.source import pack
from ropewalk.jobs.training.loop.batch import IGNORE, Batch
from ropewalk.jobs.training.loop.model import build_model
from ropewalk.jobs.training.loop.model_keys import LoraConfig
from ropewalk.jobs.training.loop.objective import LossTerms, NextToken, logits_of
from ropewalk.jobs.training.loop.recipe import Recipe, train
from ropewalk.jobs.training.loop.source import Source, TokenSource
from ropewalk.jobs.training.loop.update.state import TrainState
from ropewalk.jobs.training.loop.weights.lora import adapter_off
from ropewalk.jobs.training.pretrain.config import PretrainConfig
from ropewalk.jobs.training.pretrain.job import recipe
from ropewalk.sharding.group import Group, process_group

PACKED = 2  # documents a packed sample
PROMPT = 5  # first labels of a document that do not count


class Distillation:
    """KL(teacher || student) over the tokens that have a label, in nats."""

    metric_names = ("kl", "agreement")

    def __init__(self, teacher: nn.Module) -> None:
        self.teacher = teacher

    def __call__(self, model: nn.Module, batch: Batch) -> LossTerms:
        counted_BT = batch["labels"] != IGNORE
        with torch.no_grad():
            teacher_NV = logits_of(self.teacher, batch)[counted_BT].float().log_softmax(-1)
        student_NV = logits_of(model, batch)[counted_BT].float().log_softmax(-1)
        loss = F.kl_div(student_NV, teacher_NV, reduction="sum", log_target=True)
        count = counted_BT.sum()
        same = (student_NV.argmax(-1) == teacher_NV.argmax(-1)).sum()
        return LossTerms(
            loss, count, {"kl": torch.stack([loss.detach(), count]), "agreement": torch.stack([same, count]).float()}
        )


def run_recipe(context: JobContext, change: Callable[[Recipe, PretrainConfig, Group], Recipe]) -> dict[str, object]:
    config = context.config(PretrainConfig)
    with process_group(config.parallel) as group:
        return train(context, config, group, change(recipe(context, config, group), config, group))


def distill(context: JobContext) -> dict[str, object]:
    """The student and its teacher begin alike."""

    def change(base: Recipe, config: PretrainConfig, group: Group) -> Recipe:
        def objective(model: nn.Module, group: Group) -> Distillation:
            teacher = build_model(base.model, context.run, group, config.parallel, config.precision, trainable=False)
            pieces = list(teacher.parameters())
            state = {
                "sharded": all(isinstance(p, DTensor) and p.device_mesh == group.mesh for p in pieces),
                "frozen": not any(p.requires_grad for p in pieces) and not teacher.training,
                "elements": sum(p.to_local().numel() for p in pieces if isinstance(p, DTensor)),
            }
            (context.run.path / f"teacher-{context.rank}.json").write_text(json.dumps(state))
            return Distillation(teacher)

        return replace(base, objective=objective)

    return run_recipe(context, change)


class DocumentSource(Source):
    """Documents of varying length out of a run's sequences, their prompts without labels: packed, or one a sample."""

    def __init__(self, tokens: TokenSource, *, packed: bool) -> None:
        self._tokens, self._packed = tokens, packed
        self.epoch_samples = None
        self.tokens_per_sample = tokens.tokens_per_sample * (PACKED if packed else 1)

    def read(self, positions: Sequence[int]) -> Batch:
        """Sample k holds the documents k * PACKED ..., or document k."""
        samples = [self._documents(k) for k in positions]
        packed = [pack(documents, self.tokens_per_sample) for documents in samples] or [self.filler()]
        return {name: torch.cat([item[name] for item in packed])[: len(samples)] for name in packed[0]}

    def filler(self) -> Batch:
        """Padding alone."""
        return pack([], self.tokens_per_sample)

    def _documents(self, sample: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        numbers = range(sample * PACKED, (sample + 1) * PACKED) if self._packed else [sample]
        return [self._document(number) for number in numbers]

    def _document(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        batch = self._tokens.read([number])
        length = 10 + number * 7 % (self._tokens.tokens_per_sample - 10)
        input_ids, labels = batch["input_ids"][0, :length], batch["labels"][0, :length].clone()
        labels[:PROMPT] = IGNORE
        labels[-1] = IGNORE  # what follows the last token is another document's
        return input_ids, labels


def _documents(context: JobContext, *, packed: bool) -> dict[str, object]:
    def change(base: Recipe, config: PretrainConfig, group: Group) -> Recipe:
        assert isinstance(base.source, TokenSource)
        return replace(base, source=DocumentSource(base.source, packed=packed))

    return run_recipe(context, change)


def unpacked(context: JobContext) -> dict[str, object]:
    """Supervised finetuning in small: documents with prompts, one a sample."""
    return _documents(context, packed=False)


def packed(context: JobContext) -> dict[str, object]:
    """Train on the documents packed."""
    return _documents(context, packed=True)


class MaskedSource(TokenSource):
    """The samples of step 2 (8 to 15) have no label at all."""

    def read(self, positions: Sequence[int]) -> Batch:
        batch = super().read(positions)
        labels = batch["labels"].clone()
        for row, position in zip(labels, positions, strict=True):
            if 8 <= position < 16:
                row[:] = IGNORE
        return {**batch, "labels": labels}


def masked(context: JobContext) -> dict[str, object]:
    """A batch without a label."""

    def change(base: Recipe, config: PretrainConfig, group: Group) -> Recipe:
        assert isinstance(base.source, TokenSource)
        return replace(base, source=MaskedSource(base.source.loader))

    return run_recipe(context, change)


def adapted(context: JobContext) -> dict[str, object]:
    """Only the norms are trained: an adapter, as far as checkpoints are concerned."""

    def only_norms(model: Any) -> Any:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("norm" in name)
        return model

    def change(base: Recipe, config: PretrainConfig, group: Group) -> Recipe:
        return replace(base, model=replace(base.model, adapter=only_norms, adapter_keys={"trains": "norms"}))

    return run_recipe(context, change)


def prepared(context: JobContext) -> dict[str, object]:
    """A source that is prepared before each step."""

    class PreparedSource(TokenSource):
        def prepare(self, state: TrainState) -> None:
            with (context.run.path / f"prepared-{context.rank}").open("a") as stream:
                stream.write(f"{state.progress.step}\n")

    def change(base: Recipe, config: PretrainConfig, group: Group) -> Recipe:
        assert isinstance(base.source, TokenSource)
        return replace(base, source=PreparedSource(base.source.loader))

    return run_recipe(context, change)


class LoraPretrainConfig(PretrainConfig):
    """Pretraining with an adapter."""

    lora: LoraConfig = LoraConfig()


def _lora(context: JobContext, objective: Callable[[], Any]) -> dict[str, object]:
    config = context.config(LoraPretrainConfig)
    with process_group(config.parallel) as group:
        base = recipe(context, config, group)
        plan = base.model.with_lora(config.lora, config.seed)
        return train(context, config, group, replace(base, model=plan, objective=lambda model, group: objective()))


def lora(context: JobContext) -> dict[str, object]:
    """Next-token training of an adapter."""
    return _lora(context, NextToken)


class WithReference(NextToken):
    """Next token, and the loss of the model without its adapter as the metric `reference`."""

    metric_names = ("reference",)

    def __call__(self, model: nn.Module, batch: Batch) -> LossTerms:
        with torch.no_grad(), adapter_off(model):
            before = super().__call__(model, batch)
        terms = super().__call__(model, batch)
        return terms._replace(metrics={"reference": torch.stack([before.loss_sum, before.weight])})


def reference(context: JobContext) -> dict[str, object]:
    """The adapter switched off between two steps, in each micro-batch."""
    return _lora(context, WithReference)

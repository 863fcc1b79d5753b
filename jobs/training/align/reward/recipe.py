"""Reward models: a language model with a scalar head, trained on pairs by the Bradley-Terry loss (1952; 2203.02155)."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ropewalk.cluster.run.context import JobContext
from ropewalk.jobs.training.align.config import AlignConfig
from ropewalk.jobs.training.align.preferences.data import data_folder, prepare_data, tokenizer_plan, tokens_per_sample
from ropewalk.jobs.training.align.preferences.objective import PAIR_METRICS, pair_metrics
from ropewalk.jobs.training.align.preferences.prepare import counts_of
from ropewalk.jobs.training.align.preferences.source import PairSource, Rows
from ropewalk.jobs.training.loop.batch import Batch
from ropewalk.jobs.training.loop.model import ModelPlan
from ropewalk.jobs.training.loop.objective import LossTerms
from ropewalk.jobs.training.loop.recipe import Recipe, train
from ropewalk.jobs.training.loop.validation import HeldOut
from ropewalk.sharding.group import Group

# P pairs, T tokens

_HEAD = "score"  # name of the head in transformers' models for sequence classification


def run(context: JobContext, config: AlignConfig, group: Group) -> dict[str, object]:
    """Train a reward model on pairs."""
    manifest = prepare_data(context, config, group, paired=True)
    results = train(context, config, group, reward_recipe(context, config, group, manifest))
    return {**results, "pairs": counts_of(manifest)}


def reward_recipe(context: JobContext, config: AlignConfig, group: Group, manifest: dict[str, Any]) -> Recipe:
    """Build the recipe: pairs, the model with its new head, and the Bradley-Terry loss."""
    tokenizer = tokenizer_plan(context, manifest)
    plan = ModelPlan.of(config.model, context.run, tokenizer=tokenizer.record, seq_len=manifest["plan"]["seq_len"])
    padding = plan.config.pad_token_id if plan.config.pad_token_id is not None else tokenizer.record.end_of_document
    plan.config.pad_token_id = padding  # the model finds the end of a sequence by it, also after export
    plan = _with_trained_head(replace(plan, head="reward").with_lora(config.lora, config.seed))
    folder, tokens = data_folder(context), tokens_per_sample(manifest)
    held_out = Rows(folder / "validation.arrow")
    source = ScoredSource(Rows(folder / "train.arrow"), padding=padding, seed=config.seed, tokens_per_sample=tokens)
    validation = ScoredSource(held_out, padding=padding, seed=0, tokens_per_sample=tokens, in_order=True)
    return Recipe(
        model=plan,
        tokenizer=tokenizer,
        source=source,
        validation=HeldOut(validation, group, micro_batch=config.batch.forward_batch) if len(held_out) else None,
        objective=lambda model, group: RewardObjective(config.load_loss()),
    )


def _with_trained_head(plan: ModelPlan) -> ModelPlan:
    """Train the new head too, which an adapter would freeze."""
    adapter = plan.adapter
    if adapter is None:
        return plan

    def adapt_with_head(model: nn.Module) -> nn.Module:
        adapted_model = adapter(model)
        for name, parameter in adapted_model.named_parameters():
            if name.startswith(f"{_HEAD}."):
                parameter.requires_grad_(True)
        return adapted_model

    return replace(plan, adapter=adapt_with_head)


class ScoredSource(PairSource):
    """Pairs as whole sequences: `input_ids` [B, 2, T], the preferred answer first, padded at the end; lengths in tokens [B, 2].

    `lengths` count prompt and answer, `answers` the answer alone. transformers scores a sequence at its last unpadded token.
    """

    def __init__(self, rows: Rows, *, padding: int, **keywords: Any) -> None:
        super().__init__(rows, **keywords)
        self._padding = padding

    def read(self, positions: Sequence[int]) -> Batch:
        if not positions:
            return {name: tensor[:0] for name, tensor in self.filler().items()}
        pairs = [self._sequences(self.row(position)) for position in positions]
        tokens = [[torch.cat([prompt, answer]) for prompt, answer in pair] for pair in pairs]
        lengths = torch.tensor([[len(sequence) for sequence in both] for both in tokens])
        inputs = torch.full((len(pairs), 2, int(lengths.max())), self._padding)
        for row, both in enumerate(tokens):
            for column, sequence in enumerate(both):
                inputs[row, column, : len(sequence)] = sequence
        answers = torch.tensor([[len(answer) for _, answer in pair] for pair in pairs])
        return {"input_ids": inputs, "lengths": lengths, "answers": answers}

    def filler(self) -> Batch:
        nothing = torch.zeros(1, 2, dtype=torch.int64)
        return {"input_ids": torch.full((1, 2, 1), self._padding), "lengths": nothing, "answers": nothing}


class RewardObjective:
    """The mean loss over pairs. A pair of length 0 has no weight."""

    metric_names = tuple(name for name in PAIR_METRICS if not name.startswith("logp"))

    def __init__(self, loss: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.loss = loss

    def __call__(self, model: nn.Module, batch: Batch) -> LossTerms:
        lengths_P2, answers_P2 = batch["lengths"], batch["answers"]
        longest = max(1, int(lengths_P2.max())) if len(lengths_P2) else 1
        scores = model(input_ids=batch["input_ids"][..., :longest].flatten(0, 1), use_cache=False).logits
        scores_P2 = scores.view(lengths_P2.shape).double()
        counted_P = (lengths_P2 > 0).all(-1)
        loss_P = self.loss(scores_P2)
        metrics = pair_metrics(counted_P, scores_P2.detach(), answers_P2)
        return LossTerms(torch.where(counted_P, loss_P, 0.0).sum(), counted_P.sum(), metrics)

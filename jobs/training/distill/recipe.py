"""Distillation as a recipe of the loop: data, student, and the teacher beside it or its cached logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from ropewalk.cluster.errors import ConfigError, DataError
from ropewalk.cluster.run.context import JobContext
from ropewalk.datapipe.loader.loader import Source as DataSet
from ropewalk.datapipe.loader.loader import TokenLoader
from ropewalk.jobs.training.distill.cache import CHUNK, cached_logits, chunk_name
from ropewalk.jobs.training.distill.config import DistillConfig
from ropewalk.jobs.training.distill.losses import ENTROPY, IDS, PROBABILITIES, Distillation, Mix
from ropewalk.jobs.training.distill.models import student_plan, teacher_plan
from ropewalk.jobs.training.distill.on_policy import StudentSource
from ropewalk.jobs.training.loop.architecture.model_record import tokenizer_of
from ropewalk.jobs.training.loop.batch import Batch
from ropewalk.jobs.training.loop.chunks import Chunks
from ropewalk.jobs.training.loop.model import ModelPlan, build_model
from ropewalk.jobs.training.loop.objective import NextToken, Objective
from ropewalk.jobs.training.loop.recipe import Recipe
from ropewalk.jobs.training.loop.source import Source, TokenSource, check_sizes, validation_loader
from ropewalk.jobs.training.loop.token_data import weighted
from ropewalk.jobs.training.loop.validation import held_out_tokens
from ropewalk.sharding.group import Group

# B samples, T tokens a sample, K tokens of a sparse teacher

_OPEN_CHUNKS = 8  # kept in memory: the samples of a step are consecutive


class CachedSource(Source):
    """The samples of another source, each with a few tokens of the teacher's distribution at each of its positions."""

    def __init__(self, source: Source, chunks: Chunks) -> None:
        self._source, self._chunks = source, chunks
        self.epoch_samples, self.tokens_per_sample = source.epoch_samples, source.tokens_per_sample
        self._chunk = lru_cache(maxsize=_OPEN_CHUNKS)(self._read_chunk)

    def read(self, positions: Sequence[int]) -> Batch:
        """Return the samples at these positions, with the teacher's tokens padded to the largest number of any position."""
        batch = self._source.read(positions)
        logits = [self._logits_at(position) for position in positions]
        return {**batch, **_pad(logits, self.tokens_per_sample)}

    def expect(self, positions: Sequence[int]) -> None:
        self._source.expect(positions)

    def filler(self) -> Batch:
        nothing = np.zeros(0, np.int64), np.zeros(0), np.zeros(self.tokens_per_sample, np.int64), np.zeros(self.tokens_per_sample)
        return {**self._source.filler(), **_pad([nothing], self.tokens_per_sample)}

    def _logits_at(self, position: int) -> tuple[np.ndarray, ...]:
        number, row = divmod(position, CHUNK)
        table = self._chunk(number)
        return tuple(table[name][row].values.to_numpy() for name in ("ids", "weights", "sizes", "entropy"))

    def _read_chunk(self, number: int) -> pa.Table:
        table = self._chunks.read(chunk_name(number))
        if table is None:
            path = f"{self._chunks.folder.url}/{chunk_name(number)}"
            raise DataError(f"{path}: the teacher's logits are missing or damaged; resume the run to compute them again")
        return table


def _pad(logits: Sequence[tuple[np.ndarray, ...]], tokens: int) -> Batch:
    most = max((int(sizes.max(initial=1)) for _, _, sizes, _ in logits), default=1)
    ids_BTK = np.zeros((len(logits), tokens, max(1, most)), np.int64)
    probabilities_BTK = np.zeros(ids_BTK.shape, np.float32)
    entropy_BT = np.zeros((len(logits), tokens), np.float32)
    places_K = np.arange(ids_BTK.shape[2])
    for number, (ids, weights, sizes, nats) in enumerate(logits):
        filled_TK = places_K < sizes.astype(np.int64)[:, None]
        ids_BTK[number][filled_TK] = ids
        probabilities_BTK[number][filled_TK] = weights
        entropy_BT[number] = nats
    probabilities_BTK /= np.maximum(probabilities_BTK.sum(-1, keepdims=True), np.finfo(np.float32).tiny)
    arrays = {IDS: ids_BTK, PROBABILITIES: probabilities_BTK, ENTROPY: entropy_BT}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


@dataclass(frozen=True, kw_only=True)
class DistillationPlan:
    """A prepared distillation: the recipe, and the objects of the final evaluation."""

    recipe: Recipe
    teacher: ModelPlan
    held_out: TokenLoader | None
    chunks: Chunks | None  # of the teacher's logits, if they are cached


def plan_distillation(context: JobContext, config: DistillConfig, group: Group) -> DistillationPlan:
    """Prepare everything: teacher, pruned student, missing logits. Raises StopRequested."""
    sets = [DataSet(data_set.path, data_set.weight) for data_set in weighted(config.data)]
    loader = TokenLoader(sets, seq_len=config.seq_len, seed=config.seed, on_corrupt=config.on_corrupt, options=config.loader)
    tokenizer = tokenizer_of(loader.manifests, config.data)
    teacher = teacher_plan(context, config, group, tokenizer.record)
    student = student_plan(context, config, group, teacher, tokenizer.record)
    check_vocabularies(student, teacher)
    held_out = validation_loader(loader, sets, most=config.validation.max_sequences, on_corrupt=config.on_corrupt)
    check_sizes(group, loader, held_out)
    source: Source = TokenSource(loader)
    chunks = None
    if config.on_policy is not None:
        source = StudentSource(source, context, config, group, ends=frozenset({tokenizer.record.end_of_document}))
    if config.teacher_logits == "cached" and config.alpha < 1:
        vocabulary = int(student.config.vocab_size)
        chunks = cached_logits(context, config, group, teacher, loader=loader, vocabulary=vocabulary)
        source = CachedSource(source, chunks)

    def objective(model: nn.Module, group: Group) -> Objective:
        if config.alpha == 1:
            return NextToken()
        if chunks is not None:
            return Distillation(mix_of(config), None)
        beside = build_model(teacher, context.run, group, config.parallel, config.precision, trainable=False)
        return Distillation(mix_of(config), beside)

    recipe = Recipe(
        model=student,
        tokenizer=tokenizer,
        source=source,
        # validation is the cross entropy with the text alone
        validation=held_out_tokens(held_out, group, micro_batch=config.batch.forward_batch, comparable=config.alpha == 1),
        objective=objective,
        frozen=teacher if config.frozen_model() is not None else None,
    )
    return DistillationPlan(recipe=recipe, teacher=teacher, held_out=held_out, chunks=chunks)


def mix_of(config: DistillConfig) -> Mix:
    """Return the loss that a configuration describes."""
    return Mix(divergence=config.loss, beta=config.beta, temperature=config.temperature, alpha=config.alpha)


def check_vocabularies(student: ModelPlan, teacher: ModelPlan) -> None:
    """Raise ConfigError if the student has tokens that the teacher lacks."""
    student_size, teacher_size = int(student.config.vocab_size), int(teacher.config.vocab_size)
    if student_size > teacher_size:
        raise ConfigError(
            f"student: its vocabulary of {student_size} tokens is larger than the teacher's, {teacher_size}; "
            "choose a student by prune or preset, or one with the teacher's vocabulary"
        )

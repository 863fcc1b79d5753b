"""Distillation as a recipe of the loop: data, student, and the teacher beside it or its cached logits."""

from dataclasses import dataclass

from torch import nn

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.context import JobContext
from ropewalk.datapipe.loader.loader import Source as DataSet
from ropewalk.datapipe.loader.loader import TokenLoader
from ropewalk.jobs.training.distill.cache import cached_logits
from ropewalk.jobs.training.distill.cached_source import CachedSource
from ropewalk.jobs.training.distill.config import DistillConfig
from ropewalk.jobs.training.distill.losses import Distillation, Mix
from ropewalk.jobs.training.distill.on_policy import StudentSource
from ropewalk.jobs.training.distill.student import student_plan
from ropewalk.jobs.training.distill.teacher import teacher_plan
from ropewalk.jobs.training.loop.chunks import Chunks
from ropewalk.jobs.training.loop.model import ModelPlan, build_model
from ropewalk.jobs.training.loop.model_record import tokenizer_of
from ropewalk.jobs.training.loop.objective import NextToken, Objective
from ropewalk.jobs.training.loop.recipe import Recipe
from ropewalk.jobs.training.loop.source import Source, TokenSource, validation_loader
from ropewalk.jobs.training.loop.token_data import weighted
from ropewalk.jobs.training.loop.validation import held_out_tokens
from ropewalk.sharding.group import Group


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
    loader = TokenLoader(sets, seq_len=config.seq_len, seed=config.seed, on_corrupt=config.on_corrupt)
    tokenizer = tokenizer_of(loader.manifests, config.data)
    teacher = teacher_plan(context, config, group, tokenizer.record)
    student = student_plan(context, config, group, teacher, tokenizer.record)
    check_vocabularies(student, teacher)
    held_out = validation_loader(loader, sets, most=config.validation.max_sequences, on_corrupt=config.on_corrupt)
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
        validation=held_out_tokens(held_out, group, micro_batch=config.batch.micro_batch, comparable=config.alpha == 1),
        objective=objective,
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

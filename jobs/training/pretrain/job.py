"""Train a language model on a data set; resumable at any step and any number of ranks."""

import logging
from dataclasses import replace

from torch import nn

from ropewalk.cluster.run.context import JobContext
from ropewalk.datapipe.loader.loader import Source as DataSet
from ropewalk.datapipe.loader.loader import TokenLoader
from ropewalk.jobs.training.loop.architecture.model_record import tokenizer_of
from ropewalk.jobs.training.loop.groups import begin_heartbeat, training_group
from ropewalk.jobs.training.loop.model import ModelPlan
from ropewalk.jobs.training.loop.objective import Objective, make_objective
from ropewalk.jobs.training.loop.recipe import Recipe, train
from ropewalk.jobs.training.loop.source import TokenSource, check_sizes, validation_loader
from ropewalk.jobs.training.loop.token_data import weighted
from ropewalk.jobs.training.loop.validation import held_out_tokens
from ropewalk.jobs.training.pretrain.config import PretrainConfig
from ropewalk.sharding.group import Group

log = logging.getLogger(__name__)


def main(context: JobContext) -> dict[str, object]:
    """Train to the end, from the newest complete checkpoint if there is one; returns the results."""
    config = context.config(PretrainConfig)
    begin_heartbeat(context, config)
    with training_group(context, config) as group:
        return train(context, config, group, recipe(context, config, group))


def recipe(context: JobContext, config: PretrainConfig, group: Group) -> Recipe:
    """Build the recipe: next-token prediction, or the user's objective, on sequences of the data sets."""
    sets = [DataSet(data_set.path, data_set.weight) for data_set in weighted(config.data)]
    loader = TokenLoader(sets, seq_len=config.seq_len, seed=config.seed, on_corrupt=config.on_corrupt, options=config.loader)
    tokenizer = tokenizer_of(loader.manifests, config.data)
    held_out = validation_loader(loader, sets, most=config.validation.max_sequences, on_corrupt=config.on_corrupt)
    check_sizes(group, loader, held_out)
    if held_out is None and group.is_main:
        log.warning("no validation split with a sequence of %d tokens: there is no validation", config.seq_len)
        context.run.event("no_validation", seq_len=config.seq_len)
    start = tokenizer.record.end_of_document if config.separate_documents else None

    def objective(_model: nn.Module, _group: Group) -> Objective:
        return make_objective(config.objective, config.z_loss)

    plan = ModelPlan.of(config.model, context.run, tokenizer=tokenizer.record, seq_len=config.seq_len)
    return Recipe(
        model=replace(plan, kernel=config.attention),
        tokenizer=tokenizer,
        source=TokenSource(loader, document_start=start),
        validation=held_out_tokens(
            held_out,
            group,
            micro_batch=config.batch.forward_batch,
            cross_entropy=config.objective is None,
            document_start=start,
        ),
        objective=objective,
        packs=config.packing_key(),
    )

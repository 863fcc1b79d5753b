"""Put a pretraining run together: data, model, checkpoints, loop."""

import logging
from typing import TYPE_CHECKING

from cluster.run.context import JobContext
from datapipe.loader.loader import Source, TokenLoader
from jobs.training.load_checkpoint import checkpoints_of, find_donor
from jobs.training.model import build_model, has_dropout, identity_of, model_config
from jobs.training.objective import NextToken
from jobs.training.report import Report
from jobs.training.step import Stepper
from jobs.training.throughput import meter_of
from jobs.training.token_data import common_tokenizer, weighted
from jobs.training.trainer import Loop, Parts
from sharding.checkpoint import Checkpoints
from sharding.group import Group
from sharding.layout import place_of

if TYPE_CHECKING:
    from jobs.pretrain.config import PretrainConfig

log = logging.getLogger(__name__)


def assemble(context: JobContext, config: "PretrainConfig", group: Group) -> Loop:
    """A loop that stands where the newest complete checkpoint stands, or at the beginning."""
    sources = [Source(source.path, source.weight) for source in weighted(config.data)]
    loader = TokenLoader(sources, seq_len=config.seq_len, seed=config.seed, on_corrupt=config.on_corrupt)
    tokenizer = common_tokenizer(loader.manifests, config.data)
    shape = model_config(
        config.model, vocabulary=tokenizer.vocabulary, end_of_document=tokenizer.end_of_document, seq_len=config.seq_len
    )
    checkpoints = Checkpoints(context.run, group, context.fence, config.checkpoint, identity_of(shape))
    found = checkpoints.find()
    donor = find_donor(context.run, config.start_from) if config.start_from and found is None else None
    loads = found is not None or donor is not None
    model = build_model(shape, group, config.fsdp, seed=config.seed, weights=not loads, path=config.model.path)
    loop = Loop(
        Parts(
            context=context,
            config=config,
            group=group,
            stepper=Stepper(model, NextToken(), config, group, dropout=has_dropout(shape)),
            loader=loader,
            held_out=_held_out(loader, sources, config, context, group),
            checkpoints=checkpoints,
            report=Report(
                context, group, meter_of(model, shape, group, config.seq_len), steps=config.steps, log_every=config.log_every
            ),
        )
    )
    if found is not None:
        loop.load(*found)
    elif donor is not None and config.start_from is not None:
        place = place_of(donor, checkpoints_of(donor))
        loop.begin_with(*checkpoints.find_elsewhere(place, config.start_from.step), donor)
    if found is None and config.anomaly.policy == "rollback":
        loop.save_initial()  # something to go back to
    checkpoints.clean()
    return loop


def _held_out(
    loader: TokenLoader, sources: list[Source], config: "PretrainConfig", context: JobContext, group: Group
) -> TokenLoader | None:
    """The validation split of those sources that have one."""
    having = [
        source
        for source, manifest in zip(sources, loader.manifests, strict=True)
        if any(shard.tokens > config.seq_len for shard in manifest.of_split("validation"))
    ]
    if having:
        return TokenLoader(having, seq_len=config.seq_len, seed=config.seed, split="validation", on_corrupt=config.on_corrupt)
    if group.first:
        log.warning("no validation split with a sequence of %d tokens: the model is not scored", config.seq_len)
        context.run.event("no_validation", seq_len=config.seq_len)
    return None

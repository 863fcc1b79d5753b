"""Finetune a language model on conversations; resumable at any step and any number of ranks."""

import logging
from dataclasses import replace
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from torch import nn

from ropewalk.cluster.page import heading
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.chat.dataset import ChatSet
from ropewalk.jobs.results.readable import write_table
from ropewalk.jobs.runs.show.run_page import write_run_page
from ropewalk.jobs.training.finetune.config import FinetuneConfig
from ropewalk.jobs.training.finetune.data import PreparedData, prepared_data
from ropewalk.jobs.training.finetune.source import ConversationSource
from ropewalk.jobs.training.loop.architecture.model_record import read_record
from ropewalk.jobs.training.loop.groups import begin_heartbeat, training_group
from ropewalk.jobs.training.loop.model import ModelPlan
from ropewalk.jobs.training.loop.objective import Objective, make_objective
from ropewalk.jobs.training.loop.recipe import Recipe, train
from ropewalk.jobs.training.loop.validation import HeldOut
from ropewalk.jobs.training.loop.weights.run_weights import ADDED_TOKENS
from ropewalk.sharding.group import Group

log = logging.getLogger(__name__)

SEQ_LEN = 1024  # default, unless the model has fewer positions
SAMPLES = 10
_LEGEND = "<p>The first {} conversations as the model reads them; <mark>marked</mark> tokens count for the loss.</p>\n"


def main(context: JobContext) -> dict[str, object]:
    """Train to the end, from the newest complete checkpoint if there is one; returns the results."""
    config = context.config(FinetuneConfig)
    with training_group(context, config) as group:
        data = prepared_data(context, config, group)
        begin_heartbeat(context, config)
        training_recipe = recipe(context, config, group, data)
        results = train(context, config, group, training_recipe)
        return {**results, **_facts(data, training_recipe.source)}


def recipe(context: JobContext, config: FinetuneConfig, group: Group, data: PreparedData) -> Recipe:
    """Build the recipe: next-token prediction of the assistant's tokens, or the user's objective on them."""
    plan = model_plan(context, config, data)
    source, validation = _sources(context, config, group, data, plan.seq_len)

    def objective(_model: nn.Module, _group: Group) -> Objective:
        return make_objective(config.objective, config.z_loss)

    held_out = None
    if validation is not None:
        conversations, bytes_per_token = validation.conversations, None
        if config.objective is None:  # the unit of another loss is not nats
            bytes_per_token = max(conversations.learnt_bytes, 1) / max(conversations.num_learnt, 1)
        held_out = HeldOut(validation, group, micro_batch=config.batch.forward_batch, bytes_per_token=bytes_per_token)
    return Recipe(
        model=plan,
        tokenizer=data.tokenizer,
        source=source,
        validation=held_out,
        objective=objective,
        packs=config.packing_key(),
        chat=True,
    )


def model_plan(context: JobContext, config: FinetuneConfig, data: PreparedData) -> ModelPlan:
    """Plan the base model, with embeddings for added tokens and with the adapter. Raises ConfigError."""
    tokenizer = data.manifest.tokenizer
    from_scratch = config.model.path is None and config.model.run is None
    plan = ModelPlan.of(
        config.model, context.run, tokenizer=tokenizer if from_scratch else data.base, seq_len=config.seq_len or 1
    )
    limit = getattr(plan.config, "max_position_embeddings", None) or SEQ_LEN
    seq_len = config.seq_len or min(SEQ_LEN, int(limit))
    plan = replace(plan, seq_len=seq_len, config=_extend_vocabulary(plan.config, data))
    plan = plan.with_lora(config.lora, config.seed, _added_tokens(context, data))
    return replace(plan, grid=config.qat, noise=config.neftune, kernel=config.attention)


def _added_tokens(context: JobContext, data: PreparedData) -> list[int]:
    """Return the tokens that the data's tokenizer adds to the base model's; fixed when the run starts for the first time."""
    settled = read_record(context.run)
    if settled is not None:
        return list((settled.adapter or {}).get(ADDED_TOKENS, ()))
    return list(range(data.base.vocabulary, data.manifest.tokenizer.vocabulary))


def _extend_vocabulary(config: Any, data: PreparedData) -> Any:
    """Return the configuration with room for added tokens, and with the end-of-turn token that they may include."""
    tokenizer = data.manifest.tokenizer
    config.vocab_size = max(config.vocab_size, tokenizer.vocabulary)
    if tokenizer.end_of_document != data.base.end_of_document:
        config.eos_token_id = tokenizer.end_of_document
    return config


def _sources(
    context: JobContext, config: FinetuneConfig, group: Group, data: PreparedData, seq_len: int
) -> tuple[ConversationSource, ConversationSource | None]:
    conversations = ChatSet(data.path, "train")
    source = ConversationSource(conversations, seq_len=seq_len, seed=config.seed, packed=config.packing, on_long=config.on_long)
    held_out = ChatSet(data.path, "validation")
    usable = bool(((held_out.lengths >= 2) & (held_out.lengths <= seq_len + 1)).any())
    validation = None
    if usable:
        how = "drop" if config.on_long == "error" else config.on_long
        validation = ConversationSource(held_out, seq_len=seq_len, seed=config.seed, packed=config.packing, on_long=how)
    if group.is_main:
        _report(context, source, validation)
        write_samples(context.run, source, data.tokenizer.folder)
    return source, validation


def _report(context: JobContext, source: ConversationSource, validation: ConversationSource | None) -> None:
    context.run.event(
        "conversations",
        train=len(source.conversations),
        validation=len(validation.conversations) if validation is not None else 0,
        samples=source.epoch_samples,
        positions_used=round(source.packs.fill_ratio, 4) if source.packed else None,
        too_long=source.num_long,
        cut=source.num_cut,
    )
    if source.num_long:
        how = "cut" if source.num_cut else "left out"
        log.warning("%d conversations are longer than seq_len=%d and %s", source.num_long, source.seq_len, how)
    if validation is None:
        log.warning("no validation split: overfitting is not detected")
        context.run.event("no_validation", seq_len=source.seq_len)


def _facts(data: PreparedData, source: Any) -> dict[str, object]:
    return {
        "conversations": data.manifest.totals.documents,
        "rejected": data.manifest.rejected.total,
        "reasons": data.manifest.rejected.reasons,
        "too_long": source.num_long,
        "cut": source.num_cut,
        **({"positions_used": round(source.packs.fill_ratio, 4)} if source.packed else {}),
        "data": data.path,
    }


def write_samples(run: RunDir, source: ConversationSource, tokenizer: StoragePath) -> None:
    """Write samples.html, unless it exists."""
    path = run.path / "samples.html"
    if path.is_file():
        return
    encoder = Tokenizer.from_str(tokenizer.read("tokenizer.json").decode())
    numbers = [number for position in range(min(SAMPLES, len(source.packs))) for number in source.packs[position]][:SAMPLES]
    shown = [_sample(source, number, encoder) for number in numbers]
    rows = [_row(source, number, encoder) for number in numbers]
    write_table(run.path, "chats", ("conversation", "tokens", "trained tokens", "context", "trained"), rows)
    write_run_page(run, path, "Trained tokens", [_LEGEND.format(len(shown)), *shown])


def _row(source: ConversationSource, number: int, encoder: Tokenizer) -> list[object]:
    """Return a conversation as a row of a table: context and trained text, each in pieces."""
    index = source.index_of(number)
    tokens, learnt = source.conversations[index]
    parts: dict[bool, list[str]] = {False: [], True: []}
    for start, stop in pairwise([0, *(np.flatnonzero(np.diff(learnt.astype(np.int8))) + 1).tolist(), len(tokens)]):
        parts[bool(learnt[start])].append(encoder.decode(tokens[start:stop].tolist(), skip_special_tokens=False))
    read, trained = ("\n\n".join(parts[side]) for side in (False, True))
    return [source.conversations.name(index), len(tokens), int(learnt.sum()), read, trained]


def _sample(source: ConversationSource, number: int, encoder: Tokenizer) -> str:
    index = source.index_of(number)
    tokens, learnt = source.conversations[index]
    tokens, learnt = tokens[: source.seq_len + 1], learnt[: source.seq_len + 1]
    borders = [0, *(np.flatnonzero(np.diff(learnt.astype(np.int8))) + 1).tolist(), len(tokens)]
    pieces = []
    for start, stop in pairwise(borders):
        text = escape(encoder.decode(tokens[start:stop].tolist(), skip_special_tokens=False))
        pieces.append(f"<mark>{text}</mark>" if learnt[start] else text)
    note = f"{int(learnt.sum()):,} of {len(tokens):,} tokens count for the loss"
    return f"{heading(source.conversations.name(index), note)}<pre>{''.join(pieces)}</pre>\n"

"""Preference training as a recipe of the loop: prepared data, the model and its reference."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.manifest import hash_of
from ropewalk.jobs.training.align.config import AlignConfig
from ropewalk.jobs.training.align.methods import METHODS
from ropewalk.jobs.training.align.preferences.data import data_folder, prepare_data, tokenizer_plan, tokens_per_sample
from ropewalk.jobs.training.align.preferences.kto import KtoHeldOut, KtoObjective, KtoSource
from ropewalk.jobs.training.align.preferences.objective import PairObjective, answer_log_probs
from ropewalk.jobs.training.align.preferences.prepare import SPLITS, counts_of
from ropewalk.jobs.training.align.preferences.reference import Reference, first_model, open_reference
from ropewalk.jobs.training.align.preferences.source import LabelledSource, PairSource, PreferenceSource, Rows
from ropewalk.jobs.training.loop.architecture.model_record import Weights
from ropewalk.jobs.training.loop.batch import to_device
from ropewalk.jobs.training.loop.chunks import Chunks, compute_chunks, weights_content
from ropewalk.jobs.training.loop.model import ModelPlan
from ropewalk.jobs.training.loop.objective import Objective
from ropewalk.jobs.training.loop.recipe import Recipe, train
from ropewalk.jobs.training.loop.validation import HeldOut
from ropewalk.jobs.training.loop.weights.on_main import on_main
from ropewalk.sharding.group import Group
from ropewalk.sharding.parallelize import compute_format

ROWS_A_CHUNK = 256


def run(context: JobContext, config: AlignConfig, group: Group) -> dict[str, object]:
    """Train on preferences; the results count the records that were left out, by reason."""
    manifest = prepare_data(context, config, group, paired=METHODS[config.method].paired)
    results = train(context, config, group, preference_recipe(context, config, group, manifest))
    return {**results, "pairs": counts_of(manifest)}


def preference_recipe(context: JobContext, config: AlignConfig, group: Group, manifest: dict[str, Any]) -> Recipe:
    """Build the recipe: pairs or labelled answers, their loss, and the reference."""
    tokenizer = tokenizer_plan(context, manifest)
    seq_len = manifest["plan"]["seq_len"]
    plan = ModelPlan.of(config.model, context.run, tokenizer=tokenizer.record, seq_len=seq_len)
    plan = plan.with_lora(config.lora, config.seed)
    log_probs = _log_probs(context, config, group, plan, manifest) if config.compared_with == "precomputed" else {}
    kto = None if METHODS[config.method].paired else KtoObjective(config.load_loss(), config.strength, group)

    def objective(model: nn.Module, group: Group) -> Objective:
        reference: Reference | None = None
        if config.compared_with in {"adapter", "copy"}:
            reference = open_reference(config.compared_with, context, config, group, plan)
        if kto is None:
            return PairObjective(config.load_loss(), reference, compared=config.compared_with != "none")
        kto.reference = reference
        return kto

    held_out = _source(context, config, manifest, "validation", reference=log_probs.get("validation"))
    validation = (HeldOut if kto is None else KtoHeldOut)(held_out, group, micro_batch=config.batch.forward_batch)
    return Recipe(
        model=plan,
        tokenizer=tokenizer,
        source=_source(context, config, manifest, "train", reference=log_probs.get("train"), in_order=False, kto=kto),
        validation=validation if held_out.epoch_samples else None,
        objective=objective,
        frozen=plan if config.frozen_model() is not None else None,
        chat=True,
    )


def _source(
    context: JobContext,
    config: AlignConfig,
    manifest: dict[str, Any],
    split: str,
    *,
    reference: torch.Tensor | None = None,
    in_order: bool = True,
    kto: KtoObjective | None = None,
) -> PreferenceSource:
    rows = Rows(data_folder(context) / f"{split}.arrow")
    options: dict[str, Any] = {"seed": config.seed, "in_order": in_order, "reference": reference}
    options["tokens_per_sample"] = tokens_per_sample(manifest)
    if METHODS[config.method].paired:
        return PairSource(rows, **options)
    options["seq_len"] = manifest["plan"]["seq_len"]
    return LabelledSource(rows, **options) if kto is None else KtoSource(rows, kto, config.batch, **options)


def _log_probs(
    context: JobContext, config: AlignConfig, group: Group, plan: ModelPlan, manifest: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """Return the reference's log-probabilities of every row, by split; computed now unless an earlier attempt or run did."""

    def find() -> tuple[str, str, list[str]]:
        model = replace(plan, adapter=None).fingerprint
        fingerprint = reference_fingerprint(model, plan.weights, manifest["hash"], compute_format(config.precision, group.device))
        chunks = reference_chunks(config.data, data_folder(context) / "reference", fingerprint)
        return chunks.folder.url, fingerprint, ReferenceLogProbs(chunks, sources).missing()

    sources = {split: _source(context, config, manifest, split) for split in SPLITS}
    url, fingerprint, missing = on_main(group, find)
    chunks = Chunks(folder=StoragePath(url), fingerprint=fingerprint)
    log_probs = ReferenceLogProbs(chunks, sources)
    if missing:
        reference = first_model(context, config, group, plan)
        log_probs.compute(context, group, reference, missing, config.batch.forward_batch)
    return log_probs.read()


def reference_fingerprint(model: Mapping[str, Any], weights: Weights | None, data_hash: str, precision: str) -> str:
    """Hash everything that determines the log-probabilities: model, content of its weights, token ids, precision."""
    return hash_of({"model": dict(model), "weights": dict(weights_content(weights)), "data": data_hash, "precision": precision})


def reference_chunks(data: str, fallback: Path, fingerprint: str) -> Chunks:
    """Choose a folder beside the data, where other runs of a sweep find it too, or `fallback` if that is not writable."""
    if any(letter in data for letter in "*?["):
        return Chunks(folder=StoragePath(fallback), fingerprint=fingerprint)
    return Chunks.beside(data, "reference", fingerprint, otherwise=fallback)


class ReferenceLogProbs:
    """Log-probabilities [rows, A] of each split, in chunks of ROWS_A_CHUNK rows."""

    def __init__(self, chunks: Chunks, sources: Mapping[str, PreferenceSource]) -> None:
        self.chunks, self.sources = chunks, sources
        self._rows = {
            f"{split}-{start // ROWS_A_CHUNK:05d}.arrow": (split, range(start, min(start + ROWS_A_CHUNK, len(source.rows))))
            for split, source in sources.items()
            for start in range(0, len(source.rows), ROWS_A_CHUNK)
        }

    def missing(self) -> list[str]:
        return [name for name in self._rows if self.chunks.read(name) is None]

    @torch.no_grad()
    def compute(self, context: JobContext, group: Group, model: nn.Module, missing: list[str], micro_batch: int) -> None:
        """Compute and store the missing chunks, equal for any number of ranks. All ranks call it. Raises StopRequested."""

        def chunk(name: str, mine: bool) -> pa.Table | None:
            split, rows = self._rows[name]
            source, values = self.sources[split], []
            for start in range(0, ROWS_A_CHUNK, micro_batch):  # as many passes as the largest chunk needs, to match collectives
                positions = rows[start : start + micro_batch] if mine else rows[:0]
                batch = source.read(positions) if positions else source.filler()
                sums = answer_log_probs(model, to_device(batch, group.device)).sums
                if positions:
                    values.append(sums.cpu().numpy())
            return pa.table({"log_probs": list(np.concatenate(values))}) if values else None

        compute_chunks(context, group, self.chunks, missing, chunk)

    def read(self) -> dict[str, torch.Tensor]:
        """Return the values by split, without splits that have no rows."""
        values: dict[str, list[Any]] = {}
        for name, (split, _) in self._rows.items():
            table = self.chunks.read(name)
            assert table is not None, "chunks are computed before they are read"
            values.setdefault(split, []).extend(table["log_probs"].to_pylist())
        return {split: torch.tensor(rows, dtype=torch.float64) for split, rows in values.items()}

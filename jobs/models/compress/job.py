"""Build variants of a model, measure each in the engine that serves it, and apply a gate to the table."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ropewalk.cluster.errors import ConfigError, GateError, StopRequested
from ropewalk.cluster.run.context import JobContext
from ropewalk.datapipe.loader.loader import Source, TokenLoader
from ropewalk.jobs.evaluation.tasks.load import need_lm_eval
from ropewalk.jobs.evaluation.tasks.scoring import first_metric
from ropewalk.jobs.inference.scoring.open_model import OpenModel, open_model
from ropewalk.jobs.models.compress.artifacts import Artifact, InTransformers, opened, save
from ropewalk.jobs.models.compress.build import Builder
from ropewalk.jobs.models.compress.config import DENSE, CompressConfig
from ropewalk.jobs.models.compress.measure import Reference, quality, reference
from ropewalk.jobs.models.compress.recover import FOLDER as RECOVERY
from ropewalk.jobs.models.compress.recover import Recovery
from ropewalk.jobs.models.compress.report import FOLDER, PAGE, write_report
from ropewalk.jobs.models.compress.sparsify import zeros
from ropewalk.jobs.models.compress.timing import measure_timing
from ropewalk.jobs.results.gate import Gate, check_names, gate
from ropewalk.jobs.results.metrics import MetricLog
from ropewalk.jobs.results.score import Score, hash_of
from ropewalk.jobs.runs.program.finished import Ledger
from ropewalk.jobs.training.loop.architecture.model_config import check_fit
from ropewalk.jobs.training.loop.architecture.model_record import tokenizer_of
from ropewalk.jobs.training.loop.token_data import weighted
from ropewalk.sharding.group import process_group

log = logging.getLogger(__name__)

VARIANTS = "variants"
QUALITY = ("bits_per_byte", "more_bits_per_byte", "kl")
COSTS = ("bytes", "rss", "first_token_ms", "per_token_ms")


def main(context: JobContext) -> dict[str, object]:
    """Measure the model and all variants; return `table` and the result of the gate.

    A resumed run measures only variants without a row. Raises GateError, with the results, if the gate refuses the model;
    StopRequested.
    """
    config = context.config(CompressConfig)
    with process_group(config.parallel) as group:
        if group.world_size > 1:
            raise ConfigError(f"compress runs on one rank, not {group.world_size}; set resources.ranks_per_node=1")
        tasks = _tasks(config)
        names = [f"{variant}/{figure}" for variant in (DENSE, *config.all_variants()) for figure in (*QUALITY, *COSTS, *tasks)]
        check_names(config.require, names)
        dense = _open_recorded_model(context, config)
        builder = Builder(config=config, dense=dense, recover=Recovery(context=context, config=config, dense=dense, group=group))
        builder.check()
        rows = _measure_variants(context, config, dense, builder, tasks)
    return _finish(context, config, dense, rows)


def _open_recorded_model(context: JobContext, config: CompressConfig) -> OpenModel:
    """Open the model; all attempts use the same checkpoint, whatever its run has saved since."""
    ledger = Ledger(context, "model")
    recorded = ledger.get("model")
    dense = open_model(
        config.model, context.run.path.parent, device=torch.device("cpu"), step=recorded["step"] if recorded is not None else None
    )
    ledger.add("model", {"step": dense.step})
    return dense


def _tasks(config: CompressConfig) -> Mapping[str, Any]:
    """Return the tasks on which variants are scored, validated before anything is built. Raises ConfigError, DataError."""
    if not config.tasks:
        return {}
    need_lm_eval()
    from ropewalk.jobs.models.compress.task_scores import scored_tasks

    return scored_tasks(config)


def _measure_variants(
    context: JobContext, config: CompressConfig, dense: OpenModel, builder: Builder, tasks: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return the row of each variant, the model's own first; existing rows are not measured again."""
    ledger = Ledger(context, "table")
    variants = config.all_variants()
    if any(name not in ledger for name in (DENSE, *variants)):
        sequences, bytes_per_token = _held_out(config, dense)
        reference_path = context.run.path / FOLDER / "dense.npy"
        with reference(reference_path, sequences, InTransformers(dense.model), dense.model.config.vocab_size) as dense_reference:
            for name in (DENSE, *variants):
                if context.stop_requested():
                    raise StopRequested
                if name in ledger:
                    continue
                folder = context.run.path / VARIANTS / name
                artifact = _dense(dense, folder) if name == DENSE else builder.build(variants[name], folder)
                row = _row(config, name, artifact, dense_reference, bytes_per_token)
                row["scores"] = _scores(config, artifact, dense, tasks)
                ledger.add(name, {"row": row})
                MetricLog(context).log(len(ledger), {f"compress/{name}/{key}": row[key] for key in (*QUALITY, "bytes")})
                context.run.event("measured", variant=name, **{key: row[key] for key in QUALITY})
                if not config.keep:
                    shutil.rmtree(folder)
        shutil.rmtree(context.run.path / RECOVERY, ignore_errors=True)
    return [dict(ledger.done[name]["row"]) for name in (DENSE, *variants)]


def _held_out(config: CompressConfig, dense: OpenModel) -> tuple[list[list[int]], float]:
    """Return the sequences to measure, T + 1 tokens each, and the bytes of text per token of the split."""
    sources = [Source(source.path, source.weight) for source in weighted(config.data)]
    loader = TokenLoader(sources, seq_len=config.seq_len, seed=config.seed, split=config.split, most=config.max_sequences)
    check_fit(dense.model.config, tokenizer_of(loader.manifests, config.data).record.vocabulary, config.seq_len)
    return loader.in_order(0, loader.sequences).tolist(), loader.bytes_per_token


def _dense(dense: OpenModel, folder: Path) -> Artifact:
    """Return the model itself as a directory beside the variants."""
    artifact = Artifact.read(folder)
    if artifact is None:
        folder.mkdir(parents=True, exist_ok=True)
        artifact = Artifact(engine="transformers", path=save(dense.model, dense, folder), zeros=zeros(dense.model))
        artifact.write(folder)
    return artifact


def _row(
    config: CompressConfig, name: str, artifact: Artifact, dense_reference: Reference, bytes_per_token: float
) -> dict[str, Any]:
    with opened(artifact, context=config.seq_len, threads=torch.get_num_threads()) as engine:
        measured = quality(engine, dense_reference, bytes_per_token)
    times = measure_timing(artifact, config.timing) if config.timing is not None else {}
    row = {
        "variant": name,
        "engine": artifact.engine,
        **measured,
        "n": len(dense_reference.sequences),
        "bytes": artifact.bytes,
        **times,
    }
    log.info("%s: %.4f bits per byte, KL %.4f, %d bytes", name, measured["bits_per_byte"], measured["kl"], artifact.bytes)
    return {**row, "zeros": artifact.zeros, "notes": list(artifact.notes), "path": f"{VARIANTS}/{name}/{artifact.path.name}"}


def _scores(config: CompressConfig, artifact: Artifact, dense: OpenModel, tasks: Mapping[str, Any]) -> dict[str, Any]:
    if not tasks:
        return {}
    from ropewalk.jobs.models.compress.task_scores import scores_of

    return scores_of(artifact, tasks, config, dense, torch.get_num_threads())


def _finish(context: JobContext, config: CompressConfig, dense: OpenModel, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    judged = _judge(config, rows) if config.require else None
    context.fence.check()
    plain = judged.plain() if judged is not None else None
    write_report(context.run, dense.name, rows, plain)
    results: dict[str, Any] = {"table": list(rows), "model_step": dense.step, "report": f"{FOLDER}/{PAGE}"}
    if judged is not None:
        results["gate"] = plain
        if not judged.passed:
            raise GateError(f"the gate refuses {config.model}: {judged.words}", results)
    return results


def _judge(config: CompressConfig, rows: Sequence[Mapping[str, Any]]) -> Gate:
    """Apply the conditions to the figures of the table."""
    content_hash = hash_of(config.data, config.split, config.seq_len, config.max_sequences)
    scores = {
        f"{row['variant']}/{figure}": Score(value=row[figure], standard_error=_error(row, figure), n=row["n"], hash=content_hash)
        for row in rows
        for figure in (*QUALITY, *COSTS)
        if row.get(figure) is not None
    }
    for row in rows:
        for task, metrics in (row.get("scores") or {}).items():
            scores[f"{row['variant']}/{task}"] = Score.of(metrics[first_metric(metrics)])
    return gate(config.require, scores)


def _error(row: Mapping[str, Any], figure: str) -> float | None:
    error: float | None = row.get("standard_error" if figure == "bits_per_byte" else f"{figure}_standard_error")
    return error

"""The prepared data of a run: prepared by rank 0 before the first step, reported, and opened by every rank."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.manifest import TokenizerRecord
from ropewalk.datapipe.tokens.tokenizer import Encoder, TokenizerFiles, take_tokenizer
from ropewalk.jobs.training.align.config import AlignConfig
from ropewalk.jobs.training.align.preferences.lengths import Lengths
from ropewalk.jobs.training.align.preferences.prepare import DataPlan, counts_of, prepare, read_data_manifest
from ropewalk.jobs.training.loop.architecture.model_record import TokenizerPlan, find_source_run
from ropewalk.jobs.training.loop.model import ModelPlan
from ropewalk.jobs.training.loop.weights.on_main import on_main
from ropewalk.sharding.group import Group

log = logging.getLogger(__name__)

_FOLDER = "pairs"  # of a run
_SEQ_LEN = 1024


def data_folder(context: JobContext) -> Path:
    """Return the folder of a run with its tokenized data."""
    return context.run.path / _FOLDER


def prepare_data(context: JobContext, config: AlignConfig, group: Group, *, paired: bool) -> dict[str, Any]:
    """Return the manifest of the run's data; rank 0 prepares it unless an earlier attempt did, while the others wait."""

    def make() -> dict[str, Any]:
        manifest = read_data_manifest(data_folder(context))
        if manifest is None:
            context.fence.check()
            tokenizer = tokenizer_files(context, config)
            manifest = prepare(_data_plan(context, config, tokenizer, paired=paired), tokenizer, data_folder(context))
            _report(context, manifest)
        return manifest

    return on_main(group, make)


def _data_plan(context: JobContext, config: AlignConfig, tokenizer: TokenizerFiles, *, paired: bool) -> DataPlan:
    """Collect the settings of preparation. Raises ConfigError if model and tokenizer, or model and seq_len, do not match."""
    record = Encoder(tokenizer).record()
    model = ModelPlan.of(config.model, context.run, tokenizer=record, seq_len=config.seq_len or 2)
    positions = getattr(model.config, "max_position_embeddings", None) or _SEQ_LEN
    return DataPlan(
        data=config.data,
        validation_data=config.validation_data,
        validation_fraction=config.validation_fraction,
        paired=paired,
        seq_len=config.seq_len or min(_SEQ_LEN, positions),
        on_long=config.on_long,
        verbatim=config.chat.verbatim,
        system=config.chat.system,
    )


def tokenizer_files(context: JobContext, config: AlignConfig) -> TokenizerFiles:
    """Return the tokenizer of the trained model, with the configured chat template."""
    if config.model.run is not None:
        tokenizer = take_tokenizer(str(find_source_run(context.run, config.model.run, "model.run").tokenizer))
    else:
        assert config.model.path is not None
        tokenizer = take_tokenizer(config.model.path)
    template = config.chat.template_text
    return (
        tokenizer if template is None else replace(tokenizer, files={**tokenizer.files, "chat_template.jinja": template.encode()})
    )


def _report(context: JobContext, manifest: dict[str, Any]) -> None:
    """Report rejected records and a length bias."""
    counts = counts_of(manifest)
    context.run.event("pairs_prepared", **counts)
    if counts["rejected"]:
        log.warning("rejected records: %s; see %s/rejected.jsonl", counts["rejected"], _FOLDER)
        context.run.event("pairs_rejected", total=sum(counts["rejected"].values()), reasons=counts["rejected"])
    bias = Lengths.model_validate(manifest["lengths"]).bias()
    if bias is not None:
        log.warning("the preferred answer is the longer one in %.0f%% of the pairs", 100 * bias["share_longer"])
        context.run.event("length_bias", **bias)
    if not counts["rows"].get("validation"):
        context.run.event("no_validation", fraction=manifest["plan"]["validation_fraction"])


def tokenizer_plan(context: JobContext, manifest: dict[str, Any]) -> TokenizerPlan:
    """Return the tokenizer that is stored beside the run's prepared data."""
    folder = StoragePath(data_folder(context) / "tokenizer")
    return TokenizerPlan(folder=folder, record=TokenizerRecord.model_validate(manifest["tokenizer"]))


def tokens_per_sample(manifest: dict[str, Any]) -> int:
    """Return the mean number of tokens of a pair, or of an answer with its prompt."""
    mean: float = manifest["tokens"] / sum(manifest["rows"].values())
    return max(1, round(mean))

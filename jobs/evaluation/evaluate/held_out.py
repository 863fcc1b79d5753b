"""Score a model on a split of a data set, compare with a unigram model, and generate samples."""

import math
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.datapipe.loader.loader import Source, TokenLoader
from ropewalk.jobs.evaluation.evaluate.config import EvaluateConfig
from ropewalk.jobs.evaluation.evaluate.perplexity import calibration, score_sequences, unigram_loss
from ropewalk.jobs.evaluation.evaluate.readable import write_worst_sequences
from ropewalk.jobs.inference.scoring.encode import encode
from ropewalk.jobs.inference.scoring.generate import Sampling, generate
from ropewalk.jobs.inference.scoring.open_model import OpenModel, StoredModel, max_length
from ropewalk.jobs.inference.scoring.open_on_ranks import find_on_ranks
from ropewalk.jobs.results.score import hash_of
from ropewalk.jobs.runs.models.find_model import find_checkpoint
from ropewalk.jobs.training.loop.architecture.model_config import check_fit
from ropewalk.jobs.training.loop.architecture.model_record import TokenizerPlan, require_record, tokenizer_of
from ropewalk.jobs.training.loop.token_data import weighted
from ropewalk.jobs.training.loop.validation import bits_per_byte
from ropewalk.jobs.training.loop.weights.weight_reader import for_ranks, set_values
from ropewalk.sharding.group import Group
from ropewalk.sharding.parallelize import parallelize

_DEFAULT_SEQ_LEN = 1024
HELD_OUT = "held_out"  # task name of the sequences among the items


def score_data(context: JobContext, config: EvaluateConfig, group: Group) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return loss, bits per byte and perplexity of `data`, equal at every number of ranks up to rounding; and its sequences."""
    assert config.data is not None
    subject = _open(config, context.run, group)
    sources = [Source(source.path, source.weight) for source in weighted(config.data)]
    seq_len = config.seq_len or subject.seq_len
    loader = TokenLoader(sources, seq_len=seq_len, seed=config.seed, split=config.split, most=config.max_sequences)
    tokenizer = tokenizer_of(loader.manifests, config.data)
    check_fit(subject.config, tokenizer.record.vocabulary, seq_len)
    if subject.tokenizer_hash not in (None, tokenizer.record.hash):
        raise ConfigError(
            f"data: its tokenizer is {tokenizer.record.name} ({tokenizer.record.hash}), but the model of {config.model} was "
            f"trained with another one ({subject.tokenizer_hash}); score it on data of its own tokenizer"
        )
    model = _shard(subject, config, group)
    generations = _generations(subject, model, config, tokenizer)
    n = loader.sequences
    scored = score_sequences(model, loader, group, num_sequences=n, micro_batch=config.micro_batch)
    losses = scored.losses / seq_len
    loss = losses.mean().item()
    error = losses.std().item() / math.sqrt(n) if n > 1 else None
    results: dict[str, Any] = {
        "loss": loss,
        "bits_per_byte": bits_per_byte(loss, loader.bytes_per_token),
        "perplexity": math.exp(min(loss, 700.0)),
        "n": n,
        "standard_error": error,
        "unigram_loss": unigram_loss(sources, loader, n, subject.config.vocab_size) if group.is_main else None,
        "token_calibration": calibration(scored.sure, config.seed),
        "model_step": subject.stored.step,
        "generations": generations,
    }
    if group.is_main:
        context.fence.check()
        write_worst_sequences(context.run.path, losses.tolist(), loader, _tokenizer(tokenizer))
    checksums = [shard.checksum for dataset in loader.datasets for shard in dataset.table]
    interleaving = [loader.sequences_of_sources] if len(sources) > 1 else []  # determines which sequence has which number
    settings_hash = hash_of(checksums, config.split, seq_len, *interleaving)
    items = [
        {"task": HELD_OUT, "item": number, "hash": hash_of(settings_hash, number), "prompt": "", "options": [], "target": None}
        | {"answers": [], "values": {"loss": value}, "near_tie": False}
        for number, value in enumerate(losses.tolist())
    ]
    return results, items


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """The model to score."""

    stored: StoredModel
    seq_len: int
    tokenizer_hash: str | None

    @property
    def config(self) -> Any:
        return self.stored.model.config


def _open(config: EvaluateConfig, run: RunDir, group: Group) -> _Subject:
    location, _ = find_checkpoint(config.model, run.path.parent)
    record = require_record(location) if isinstance(location, RunDir) else None
    return _Subject(
        stored=find_on_ranks(config.model, run.path.parent, group),
        seq_len=record.seq_len if record is not None else _DEFAULT_SEQ_LEN,
        tokenizer_hash=record.tokenizer.hash if record is not None else None,
    )


def _generations(subject: _Subject, model: Any, config: EvaluateConfig, plan: TokenizerPlan) -> list[dict[str, str]]:
    """Return texts that the sharded model generates after each prompt, drawn from the seed; all ranks compute the same."""
    options = config.generate
    if not options.prompts:
        return []
    tokenizer, step = _tokenizer(plan), subject.stored.step
    opened = OpenModel(model=model, tokenizer=tokenizer, name=config.model, step=step, max_length=max_length(model, tokenizer))
    sampling = Sampling(max_new_tokens=options.max_new_tokens, temperature=options.temperature)
    prompts = [encode(opened, prompt) or [opened.end] for prompt in options.prompts]
    texts = generate(opened, prompts, sampling, seed=config.seed)
    return [{"prompt": prompt, "text": text.text} for prompt, text in zip(options.prompts, texts, strict=True)]


def _tokenizer(plan: TokenizerPlan) -> PreTrainedTokenizerFast:
    """Return the tokenizer as a transformers object; its files are fetched first if they are not local."""
    tokenizer: PreTrainedTokenizerFast
    if plan.folder.local is None:
        read = plan.folder.read("tokenizer.json").decode()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(read))
    else:
        tokenizer = AutoTokenizer.from_pretrained(plan.folder.local, trust_remote_code=False)
    if tokenizer.eos_token_id is None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(plan.record.end_of_document)
    return tokenizer


def _shard(subject: _Subject, config: EvaluateConfig, group: Group) -> nn.Module:
    parallel = config.parallel.model_copy(update={"reshard": "always"}) if config.shard == "always" else config.parallel
    model = parallelize(subject.stored.model, group, parallel, config.precision, trainable=False)
    set_values(model, for_ranks(subject.stored.reader, group))
    return model

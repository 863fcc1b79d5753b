"""Rows of a dry run about training: parameters, tokens, accumulation, memory, speed, and checkpoints."""

import math
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropewalk.cluster.errors import RopewalkError
from ropewalk.cluster.run.files import read_json
from ropewalk.cluster.run.node_memory import SHARED_MEMORY
from ropewalk.cluster.storage import StoragePath
from ropewalk.cluster.text import counted, format_bytes
from ropewalk.jobs.runs.models.find_model import find_model
from ropewalk.jobs.runs.show.status import find_run
from ropewalk.jobs.training.loop.architecture.fit import read_sizes
from ropewalk.jobs.training.loop.config import TrainingConfig
from ropewalk.jobs.training.loop.forecast.memory import copies_on_node
from ropewalk.jobs.training.loop.forecast.rows import Forecast, forecast_rows
from ropewalk.jobs.training.loop.forecast.size import ModelSize, SizeRequest, model_size
from ropewalk.jobs.training.loop.model_keys import ModelConfig
from ropewalk.jobs.training.loop.token_data import weighted
from ropewalk.sharding.config import Division

if TYPE_CHECKING:
    from ropewalk.datapipe.manifest import Manifest

USUAL_SEQ_LEN = 1024  # of jobs whose seq_len is unset
MOST_SPARE = 4  # numbers of nodes to list
WRITE_RATE = 1e9  # bytes a second of a node to a shared file system, assumed


def training_plan(config: TrainingConfig) -> list[tuple[str, str]]:
    """Return the rows of a job of the training loop."""
    manifests = _manifests(config)
    exact = isinstance(seq_len := getattr(config, "seq_len", None), int) and bool(manifests)
    model = _model_of(config)
    sizes = _sizes(model)
    tokens = seq_len or min(USUAL_SEQ_LEN, int(sizes.get("max_position_embeddings") or USUAL_SEQ_LEN))
    vocabulary = manifests[0].tokenizer.vocabulary if manifests else sizes.get("vocab_size")
    size = _size(config, model, vocabulary, tokens)
    config, chosen = _with_micro_batch(config, size)
    return [
        ("parameters", _parameters(size)),
        *_tokens(config, tokens, manifests, exact=exact),
        *_copies(config),
        ("accumulation", chosen or accumulation(config)),
        *_forecast(config, size),
        ("checkpoints", _checkpoints(config, size)),
        *_copies_in_memory(config, size),
        *_integrity(config, size),
    ]


def accumulation(config: TrainingConfig) -> str:
    """Describe the micro-batches of a step, at the least and the most ranks of the run."""
    batch, resources = config.batch, config.resources
    assert batch.micro_batch != "auto"
    parts = []
    for nodes in sorted({resources.nodes.least, resources.nodes.most}):
        ranks = _division(config, nodes).computing
        shares = ranks // config.parallel.tensor  # the ranks of a tensor group have the same samples
        passes = math.ceil(math.ceil(batch.global_batch / shares) / batch.micro_batch)
        without = (shares - batch.global_batch) * config.parallel.tensor
        idle = f", {without} of the ranks without any" if without > 0 else ""
        parts.append(f"{passes} with {counted(ranks, 'rank')}{idle}")
    return f"micro-batches of up to {counted(batch.micro_batch, 'sequence')} a step on each rank: {' or '.join(parts)}"


def _division(config: TrainingConfig, nodes: int) -> Division:
    per_node = config.resources.local_world_size
    return config.parallel.divide(nodes * per_node, per_node)


def _copies(config: TrainingConfig) -> list[tuple[str, str]]:
    """Describe the copies of the model at the least and the most nodes, and the numbers of nodes that leave ranks spare."""
    if config.parallel.replicate == 1:
        return []
    nodes, per_node = config.resources.nodes, config.resources.local_world_size
    parts = []
    for count in sorted({nodes.least, nodes.most}):
        division = _division(config, count)
        copies = "1 copy" if division.copies == 1 else f"{division.copies} copies"
        ranks = counted(division.ranks_per_copy, "rank")
        parts.append(f"{copies} on {ranks} each with {counted(count, 'node')}")
    spares = {count: count * per_node - _division(config, count).computing for count in range(nodes.least, nodes.most + 1)}
    spare = [f"{ranks} with {counted(count, 'node')}" for count, ranks in spares.items() if ranks]
    more = f", and with {len(spare) - MOST_SPARE} other numbers of nodes" if len(spare) > MOST_SPARE else ""
    named = f"; spare ranks: {', '.join(spare[:MOST_SPARE])}{more}" if spare else ""
    return [("copies", " or ".join(parts) + named)]


def _with_micro_batch(config: TrainingConfig, size: ModelSize | str) -> tuple[TrainingConfig, str]:
    """Return the configuration with a number for a micro-batch of `auto`, and a text if that cannot be told yet."""
    if config.batch.micro_batch != "auto":
        return config, ""
    chosen = None
    if not isinstance(size, str) and size.shape is not None:
        chosen = Forecast(config, size.shape, size.matrices, size.device).largest_micro_batch()
    batch = config.batch.model_copy(update={"micro_batch": chosen or 1})
    text = "" if chosen else "micro-batches of as many sequences as fit, found at the start"
    return config.model_copy(update={"batch": batch}), text


def _tokens(config: TrainingConfig, seq_len: int, manifests: "list[Manifest]", *, exact: bool) -> list[tuple[str, str]]:
    batch, up_to = config.batch.global_batch, "" if exact else "up to "
    in_all = config.steps * batch * seq_len
    available = sum(manifest.totals.train.tokens for manifest in manifests)
    epochs = f", {_times(in_all / available)} the {available:,} of the data" if available else ""
    return [
        ("tokens a step", f"{up_to}{batch * seq_len:,}: {batch:,} sequences of {up_to}{seq_len:,}"),
        ("tokens in all", f"{up_to}{in_all:,} in {config.steps:,} steps{epochs}"),
    ]


def _times(factor: float) -> str:
    return f"{factor:,.0f} times" if factor >= 10 else f"{factor:.2g} times"


def _parameters(size: ModelSize | str) -> str:
    if isinstance(size, str):
        return size
    part = "" if size.trained == size.parameters else f", of which {size.trained:,} are trained"
    return f"{size.parameters:,}{part}"


def _forecast(config: TrainingConfig, size: ModelSize | str) -> list[tuple[str, str]]:
    if isinstance(size, str) or size.shape is None:
        return []
    return list(forecast_rows(Forecast(config, size.shape, size.matrices, size.device)))


def _checkpoints(config: TrainingConfig, size: ModelSize | str) -> str:
    keys = config.checkpoint
    count = min(keys.keep, math.ceil(config.steps / keys.every_steps))
    often = f"every {keys.every_steps:,} steps, the newest {keys.keep} are kept"
    if isinstance(size, str):
        return often
    each = _checkpoint_bytes(config, size)
    nodes = config.resources.nodes.least
    seconds = each / nodes / WRITE_RATE
    on_disk = f"about {format_bytes(each)} each, {format_bytes(each * count)} on disk"
    return f"{often}: {on_disk}, written in about {seconds:,.1f} s at 1 GB/s of each node, while training goes on"


def _copies_in_memory(config: TrainingConfig, size: ModelSize | str) -> list[tuple[str, str]]:
    """Describe the copies of the state in the memory of nodes."""
    if (every_steps := config.checkpoint.memory_every_steps) is None:
        return []
    often, nodes = "as often as takes at most 1% of the time", config.resources.nodes.least
    if every_steps != "auto":
        often = f"every {counted(every_steps, 'step')}"
    if isinstance(size, str):
        return [("copies in memory", often)]
    each = _checkpoint_bytes(config, size) / nodes
    on_node = format_bytes(each * copies_on_node(config))
    to_next = f", of which {format_bytes(each)} are sent to another node each time" if nodes > 1 else ""
    return [("copies in memory", f"{often}: {on_node} of {SHARED_MEMORY} on each of {counted(nodes, 'node')}{to_next}")]


def _integrity(config: TrainingConfig, size: ModelSize | str) -> list[tuple[str, str]]:
    """Describe the checks for silent corruption, and what they read."""
    keys = config.integrity
    if keys is None:
        return []
    what = "the state of each rank"
    if not isinstance(size, str):
        division = _division(config, config.resources.nodes.least)
        what = f"{format_bytes(_checkpoint_bytes(config, size) / division.ranks_per_copy)} of each rank"
    compares = "" if config.parallel.replicate == 1 else " and compares copies of the model"
    at_rest = "; twice in each step it hashes them too" if keys.at_rest else ""
    return [("integrity", f"every {counted(keys.every_steps, 'step')} and before each save hashes {what}{compares}{at_rest}")]


def _checkpoint_bytes(config: TrainingConfig, size: ModelSize) -> int:
    moment_bytes = 2 if config.precision.optimizer == "bf16" else 4
    return size.checkpoint_bytes(muon=config.optim.name == "muon", moment_bytes=moment_bytes, average=config.ema is not None)


def _manifests(config: TrainingConfig) -> "list[Manifest]":
    """Return the manifests of the data sets of tokens that can be read here; none for other data."""
    from ropewalk.datapipe.chat.config import KIND
    from ropewalk.datapipe.manifest import read_manifest

    data, manifests = getattr(config, "data", None), []
    for source in weighted(data) if isinstance(data, (str, list)) else []:
        with suppress(RopewalkError, OSError):
            manifests.append(read_manifest(StoragePath(source.path)))
    return [manifest for manifest in manifests if KIND not in manifest.config]


def _model_of(config: TrainingConfig) -> ModelConfig | None:
    """Return the model to train; None for one that is pruned from a teacher."""
    model: Any = getattr(config, "model", None) or getattr(config, "student", None)
    if isinstance(model, ModelConfig):
        return model
    student: ModelConfig | None = model.model() if model.prune is None else None
    return student


def _sizes(model: ModelConfig | None) -> dict[str, Any]:
    """Return the values of a model's config.json that can be read here; empty for a preset."""
    if model is None or model.path is None:
        return dict(model.config or {}) if model is not None else {}
    with suppress(RopewalkError):
        return dict(read_sizes("model.path", model.path) or {})
    return {}


def _frozen(config: TrainingConfig, vocabulary: int, seq_len: int) -> SizeRequest | None:
    """Return the model beside the trained one; None if there is none, or if it cannot be read here."""
    model = config.frozen_model()
    fingerprint = None
    with suppress(RopewalkError):
        source: Any = find_model(model) if isinstance(model, str) else None
        if isinstance(model, ModelConfig) and model.run is not None:
            source = find_run(model.run)
        if isinstance(source, Path):
            model = ModelConfig(path=str(source))
        elif source is not None:
            model, fingerprint = ModelConfig(run=source.id), (read_json(source.model_record) or {}).get("fingerprint")
    if not isinstance(model, ModelConfig) or (model.run is not None and fingerprint is None):
        return None
    return SizeRequest(model=model, fingerprint=fingerprint, vocabulary=vocabulary, seq_len=seq_len)


def _size(config: TrainingConfig, model: ModelConfig | None, vocabulary: int | None, seq_len: int) -> ModelSize | str:
    if model is None:
        return "those of the teacher that are left by student.prune"
    fingerprint = None
    if model.run is not None:
        with suppress(RopewalkError):
            fingerprint = (read_json(find_run(model.run).model_record) or {}).get("fingerprint")
        if fingerprint is None:
            return f"those of {model.run}"
    if model.path is not None and not Path(model.path).is_dir():
        return f"not counted: {model.path} is not on this machine yet"
    if vocabulary is None and model.preset is not None:
        return "not counted: the data set, whose vocabulary the model gets, is not accessible here"
    lora = getattr(config, "lora", None)
    gpu, compute = config.resources.gpus > 0, config.precision.compute
    request = SizeRequest(
        model=model,
        fingerprint=fingerprint,
        frozen=_frozen(config, vocabulary or 1, seq_len),
        vocabulary=vocabulary or 1,
        seq_len=seq_len,
        lora=lora,
        bf16=compute == "bf16" or (compute == "auto" and gpu),
        gpu=gpu,
    )
    return model_size(request)

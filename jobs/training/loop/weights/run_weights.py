"""Weights of a run, read in parts: those that its training starts from, and those of its checkpoints."""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationConfig

from ropewalk.cluster.errors import CheckpointError, ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.training.loop.architecture.bare_model import bare_model, set_head, skeleton
from ropewalk.jobs.training.loop.architecture.grid import layer_matrices
from ropewalk.jobs.training.loop.architecture.model_config import config_from_fingerprint, model_fingerprint
from ropewalk.jobs.training.loop.architecture.model_record import (
    Head,
    ModelRecord,
    Weights,
    checkpoint_folder,
    find_source_run,
    read_record,
    require_record,
)
from ropewalk.jobs.training.loop.architecture.sharing import LAYERS, plain_config, shared_groups, sharing_values
from ropewalk.jobs.training.loop.model_keys import LoraConfig
from ropewalk.jobs.training.loop.weights.adapter_weights import AdaptedWeights, MergedWeights
from ropewalk.jobs.training.loop.weights.directory_weights import DirectoryWeights, is_readable
from ropewalk.jobs.training.loop.weights.initial_values import DrawnWeights, record
from ropewalk.jobs.training.loop.weights.lora import lora_adapter
from ropewalk.jobs.training.loop.weights.weight_reader import (
    ChangedWeights,
    FirstWeights,
    GrownWeights,
    LoadedWeights,
    RoundedWeights,
    SharedWeights,
    WeightReader,
)
from ropewalk.sharding.checkpoints.floats import null_floats
from ropewalk.sharding.checkpoints.manifest import CheckpointManifest
from ropewalk.sharding.checkpoints.state import EMA, MODEL
from ropewalk.sharding.checkpoints.stored_tensors import StoredTensors, newest_complete

log = logging.getLogger(__name__)

_BLOCK_BYTES = 16 << 20

LORA = "lora"  # key of the adapter's options in a record
ADDED_TOKENS = "added_tokens"  # key of the tokens whose embeddings an adapter trains too
HEAD = "head"  # key of a fingerprint: the head, unless it predicts the next token


# --- first weights


def first_weights(config: Any, weights: Weights | None, run: RunDir, head: Head = "causal_lm") -> WeightReader:
    """Return the weights that the training of `run` starts from, by the names of the model without an adapter.

    `config` may have more tokens than the origin of the weights, and layers that share theirs. What the origin lacks, such as a
    new head, is drawn from the seed. Raises ConfigError.
    """
    model, seed = skeleton(config, head), seed_of(run)
    if weights is None:
        return _drawn(model, config, head, seed)
    if weights.path is not None:
        reader = _directory(model, run.path / weights.path, config, head)  # relative to the run, unless absolute
    else:
        assert weights.run is not None
        reader = open_checkpoint(find_source_run(run, weights.run, "model.run"), weights.step).reader
    if groups := shared_groups(config):
        reader = SharedWeights(reader, groups, sharing_values(config))
    reader = GrownWeights(reader, _vocabulary_rows(model), seed)
    if not reader.in_parts:  # transformers has set all
        return reader
    missing = _missing(model, reader, weights)
    if missing and head == "causal_lm":
        log.warning("%s are not among the weights and are drawn from the seed", ", ".join(missing[:5]))
    return FirstWeights(reader, _drawn(model, config, head, seed)) if missing else reader


def _missing(model: Any, reader: WeightReader, weights: Weights) -> list[str]:
    """Return the names of parameters that the reader lacks. Raises ConfigError for one of another shape."""
    missing = []
    for name, parameter in model.named_parameters():
        shape = reader.shape(name)
        if shape is None:
            missing.append(name)
        elif shape != tuple(parameter.shape):
            origin = weights.path if weights.run is None else weights.run
            raise ConfigError(
                f"model: {name} of {origin} has the shape {list(shape)}, and {list(parameter.shape)} by the configuration; "
                "name weights of this configuration"
            )
    return missing


def seed_of(run: RunDir) -> int:
    """Return the seed of a run's configuration."""
    return int(run.record["config"].get("seed") or 0)


def _drawn(model: Any, config: Any, head: Head, seed: int) -> WeightReader:
    recording = record(model, seed)
    if recording is None:
        return LoadedWeights(partial(_initialized, config, head, seed))
    return DrawnWeights(model, recording, seed)


def _initialized(config: Any, head: Head, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return bare_model(config, head)


def _directory(model: Any, directory: Path, config: Any, head: Head) -> WeightReader:
    if is_readable(directory, config):
        return DirectoryWeights(model, directory)
    if head == "causal_lm":
        kind, options = AutoModelForCausalLM, {}
    else:
        kind, options = AutoModelForSequenceClassification, {"config": set_head(config, head)}
    return LoadedWeights(partial(kind.from_pretrained, directory, dtype=torch.float32, trust_remote_code=False, **options))


def open_directory(directory: Path) -> tuple[Any, WeightReader]:
    """Return the causal model of a directory, its parameters on the meta device, and its weights.

    Raises ConfigError if weights are missing; ValueError for an architecture that transformers does not know.
    """
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    model = skeleton(config)
    if (options := generation_config(Weights(path=str(directory.absolute())), RunDir(directory))) is not None:
        model.generation_config = options
    reader = _directory(model, directory, config, "causal_lm")
    missing = _missing(model, reader, Weights(path=str(directory))) if reader.in_parts else []
    if missing:
        raise ConfigError(f"model: the weights in {directory} lack {', '.join(missing[:3])}; copy the missing files")
    return model, reader


def _vocabulary_rows(model: Any) -> dict[str, int]:
    """Return the number of rows of the parameters that have one for each token, by name."""
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    parameters = {id(parameter) for layer in layers if layer is not None for parameter in layer.parameters(recurse=False)}
    return {name: len(parameter) for name, parameter in model.named_parameters() if id(parameter) in parameters}


def generation_config(weights: Weights | None, run: RunDir) -> GenerationConfig | None:
    """Return the options of generation of the directory that weights come from, if it has any."""
    if weights is None:
        return None
    if weights.run is not None:
        source = find_source_run(run, weights.run, "model.run")
        record = read_record(source)
        return generation_config(record.weights, source) if record is not None and record.adapter is not None else None
    assert weights.path is not None
    directory = run.path / weights.path
    if not (directory / "generation_config.json").is_file():
        return None
    return GenerationConfig.from_pretrained(directory)


# --- trained weights


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """The model of a checkpoint, of which nothing has been read yet."""

    model: Any  # of transformers, its parameters on the meta device
    reader: WeightReader
    manifest: CheckpointManifest


def open_checkpoint(run: RunDir, step: int | None = None, *, merge: bool = True, ema: bool = False) -> TrainedModel:
    """Open the newest complete checkpoint of a run (or that of `step`) as a plain model of transformers.

    A low-rank adapter is merged unless `merge` is False; weights trained on a grid are rounded to it; layers that share weights
    have them each. With `ema` the trained weights are the moving average. Raises ConfigError for a run that trains no model or
    has no average, CheckpointError if there is no such checkpoint.
    """
    record = require_record(run)
    folder, manifest = newest_complete(checkpoint_folder(run), step)
    stored = StoredWeights(StoredTensors(folder, manifest), ema=ema)
    if ema and not stored.has_means:
        raise ConfigError(f"run {run.id} keeps no moving average of its weights; train with ema.decay set, or omit --ema")
    opened = _open_full(record, stored, manifest) if record.adapter is None else _open_adapted(run, record, stored, merge=merge)
    model, reader = opened
    if record.grid is not None:
        matrices = {name for name, part in _named_matrices(model)}
        reader = RoundedWeights(reader, record.grid, matrices)
    return TrainedModel(model=model.eval(), reader=reader, manifest=manifest)


def _open_full(record: ModelRecord, stored: "StoredWeights", manifest: CheckpointManifest) -> tuple[Any, WeightReader]:
    config = config_from_fingerprint(without_head(manifest.identity))
    identity = model_fingerprint(config)
    assert without_head(manifest.identity) in (identity, null_floats(identity))
    groups = shared_groups(config)
    model = skeleton(plain_config(config), record.head)
    reader: WeightReader = UnsharedWeights(stored, groups) if groups else stored
    missing = sorted(name for name, _ in model.named_parameters() if reader.shape(name) is None)
    if missing:
        raise _does_not_fit(stored, missing)
    return model, reader


def _open_adapted(run: RunDir, record: ModelRecord, stored: "StoredWeights", *, merge: bool) -> tuple[Any, WeightReader]:
    """Open an adapted model, whose frozen weights come from the same origin as in training."""
    assert record.adapter is not None
    config = config_from_fingerprint(record.fingerprint)
    base = first_weights(config, record.weights, run, record.head)
    model = skeleton(config, record.head)
    if (options := generation_config(record.weights, run)) is not None:
        model.generation_config = options
    if LORA not in record.adapter:
        adapted, reader = model, FirstWeights(stored, base)
    else:
        lora = lora_adapter(LoraConfig.model_validate(record.adapter[LORA]), 0, record.adapter.get(ADDED_TOKENS, ()))
        adapted = lora(skeleton(config, record.head) if merge else model)
        reader = FirstWeights(stored, AdaptedWeights(base, adapted, seed_of(run)))
    missing = sorted(stored.names() - {name for name, _ in [*adapted.named_parameters(), *adapted.named_buffers()]})
    if missing:
        raise _does_not_fit(stored, missing)
    return model, MergedWeights(reader, adapted) if merge and LORA in record.adapter else reader


def _does_not_fit(stored: "StoredWeights", names: list[str]) -> CheckpointError:
    return CheckpointError(f"{stored.url}: does not fit the model: {', '.join(names[:3])}; choose an older step")


def _named_matrices(model: Any) -> list[tuple[str, Any]]:
    return [(f"{LAYERS}{name}.weight", part) for name, part in layer_matrices(model)]


def without_head(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a fingerprint that is the model's own configuration."""
    return {key: value for key, value in fingerprint.items() if key != HEAD}


class StoredWeights:
    """The model's tensors of a checkpoint; with `ema` the moving averages of those that have one."""

    in_parts = True

    def __init__(self, tensors: StoredTensors, *, ema: bool) -> None:
        self.url, self._tensors = tensors.folder.url, tensors
        self._stored = {name.removeprefix(MODEL): name for name in tensors.names if name.startswith(MODEL)}
        means = {name.removeprefix(EMA): name for name in tensors.names if name.startswith(EMA)} if ema else {}
        self.has_means = bool(means)
        self._stored |= means

    def names(self) -> set[str]:
        return set(self._stored)

    def shape(self, name: str) -> tuple[int, ...] | None:
        return tuple(self._tensors.shape(self._stored[name])) if name in self._stored else None

    def read(self, name: str, begin: int = 0, end: int | None = None) -> torch.Tensor:
        """Read in blocks, since each takes memory twice or three times."""
        stored = self._stored[name]
        shape, dtype = self._tensors.shape(stored), self._tensors.dtype(stored)
        if not shape:
            return self._tensors.read(stored)
        last = shape[0] if end is None else end
        rows = max(1, _BLOCK_BYTES // max(1, shape[1:].numel() * dtype.itemsize))
        result = torch.empty(last - begin, *shape[1:], dtype=dtype)
        for first in range(begin, last, rows):
            stop = min(first + rows, last)
            result[first - begin : stop - begin] = self._tensors.read(stored, first, stop)
        return result


class UnsharedWeights(ChangedWeights):
    """A reader of layers that share weights, by the names of layers that each have their own."""

    def __init__(self, reader: WeightReader, groups: list[list[int]]) -> None:
        super().__init__(reader)
        self._first = {str(number): str(group[0]) for group in groups for number in group}

    def shape(self, name: str) -> tuple[int, ...] | None:
        return super().shape(self._shared(name))

    def read(self, name: str, begin: int = 0, end: int | None = None) -> torch.Tensor:
        return super().read(self._shared(name), begin, end)

    def _shared(self, name: str) -> str:
        if not name.startswith(LAYERS):
            return name
        number, _, rest = name.removeprefix(LAYERS).partition(".")
        return f"{LAYERS}{self._first[number]}.{rest}"

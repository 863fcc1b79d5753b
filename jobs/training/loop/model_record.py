"""What a run keeps of its model beside its checkpoints: `model.json` and the tokenizer, so that it can be opened by itself."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ropewalk.cluster.config import Section
from ropewalk.cluster.errors import CheckpointError, ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json, write_json
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.manifest import Manifest, TokenizerRecord
from ropewalk.jobs.training.loop.config import GridConfig
from ropewalk.jobs.training.loop.token_data import Data, weighted
from ropewalk.sharding.config import CheckpointConfig
from ropewalk.sharding.layout import place_of

Head = Literal["causal_lm", "reward"]


class Weights(Section):
    """Where a model's first weights come from: a Hugging Face directory, or a run's checkpoint."""

    path: str | None = Field(default=None, description="a Hugging Face directory; a relative one lies in the run")
    run: str | None = None
    step: int | None = Field(default=None, description="the checkpoint's step; None: the newest complete one")


class ModelRecord(Section):
    """The content of `model.json`. It is settled when a run starts for the first time."""

    fingerprint: dict[str, Any] = Field(description="the keys that decide the model, as in the checkpoints' manifests")
    seq_len: int
    tokenizer: TokenizerRecord
    weights: Weights | None = Field(default=None, description="None: drawn from the seed")
    adapter: dict[str, Any] | None = Field(default=None, description="set where checkpoints hold only what is trained")
    grid: GridConfig | None = Field(default=None, description="set where the model is its weights rounded to this grid")
    head: Head = Field(default="causal_lm", description="what the model says of tokens: the next one, or a score")


@dataclass(frozen=True, kw_only=True)
class TokenizerPlan:
    """The tokenizer of a run: where its files lie, and what was recorded of it."""

    place: StoragePath
    record: TokenizerRecord


def read_record(run: RunDir) -> ModelRecord | None:
    """What a run has recorded of its model; None for a run that has not begun to train, or never trains."""
    values = read_json(run.model_record)
    return ModelRecord.model_validate(values) if values else None


def require_record(run: RunDir) -> ModelRecord:
    """What a run has recorded of its model. Raises ConfigError for a run that has none."""
    record = read_record(run)
    if record is None:
        job = run.record.get("job")
        raise ConfigError(f"run {run.id}: this {job} run has no model (no {run.model_record.name}); name a run that trained one")
    return record


def tokenizer_of(manifests: list[Manifest], data: Data) -> TokenizerPlan:
    """The one tokenizer that made all of these data sets. Raises ConfigError where there are several."""
    first = manifests[0].tokenizer
    for source, manifest in zip(weighted(data), manifests, strict=True):
        if manifest.tokenizer.hash != first.hash:
            raise ConfigError(
                f"data: {source.path} was made with the tokenizer {manifest.tokenizer.name} ({manifest.tokenizer.hash}), "
                f"{weighted(data)[0].path} with {first.name} ({first.hash}); preprocess them with one tokenizer"
            )
    return TokenizerPlan(place=StoragePath(weighted(data)[0].path).child(first.path), record=first)


def keep_record(run: RunDir, record: ModelRecord, tokenizer: TokenizerPlan) -> None:
    """Write `model.json` and copy the tokenizer, unless an earlier attempt did. Rank 0 calls it."""
    if run.model_record.is_file():
        return
    names = tokenizer.place.names()
    if not names:
        raise CheckpointError(f"{tokenizer.place.url}: the tokenizer is gone, so that the model would be of no use; put it back")
    run.tokenizer.mkdir(exist_ok=True)
    for name in names:
        (run.tokenizer / name).write_bytes(tokenizer.place.read(name))
    write_json(run.model_record, record.model_dump(mode="json"))  # last: it vouches for the tokenizer too


def checkpoint_place(run: RunDir) -> StoragePath:
    """Where the checkpoints of a run lie that trains, whatever its job."""
    return place_of(run, CheckpointConfig.model_validate(run.record["config"].get("checkpoint") or {}))


def copy_tokenizer(run: RunDir, directory: Path) -> None:
    """Copy a run's tokenizer into a model's directory."""
    if not run.tokenizer.is_dir():
        raise CheckpointError(f"{run.tokenizer}: is gone, so that the model would be of no use; copy it from the run's data set")
    shutil.copytree(run.tokenizer, directory, dirs_exist_ok=True)


def find_source_run(run: RunDir, word: str, key: str) -> RunDir:
    """The run that `key` names: one that lies beside `run`, or a directory. Raises ConfigError."""
    for path in (run.path.parent / word, Path(word)):
        if (path / "run.yaml").is_file():
            return RunDir(path)
    raise ConfigError(f"{key}: no run {word!r} beside this one; give its full id, or its directory")

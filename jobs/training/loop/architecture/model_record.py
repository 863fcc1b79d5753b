"""The record of a run's model beside its checkpoints: `model.json` and the tokenizer, enough to open the model."""

import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ropewalk.cluster.errors import CheckpointError, ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json, write_json
from ropewalk.cluster.section import Section
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.manifest import Manifest, TokenizerRecord
from ropewalk.jobs.training.loop.model_keys import GridConfig
from ropewalk.jobs.training.loop.token_data import Data, weighted
from ropewalk.sharding.checkpoints.layout import folder_of
from ropewalk.sharding.config import CheckpointConfig

Head = Literal["causal_lm", "reward"]


class Weights(Section):
    """The origin of a model's first weights: a Hugging Face directory, or a run's checkpoint."""

    path: str | None = Field(default=None, description="a Hugging Face directory, absolute or relative to the run")
    run: str | None = None
    step: int | None = Field(default=None, description="step of the checkpoint; None: the newest complete one")


class ModelRecord(Section):
    """The content of `model.json`, written when a run starts for the first time."""

    fingerprint: dict[str, Any] = Field(description="the keys that determine the model, as in the checkpoints' manifests")
    seq_len: int
    tokenizer: TokenizerRecord
    weights: Weights | None = Field(default=None, description="None: random, from the seed")
    adapter: dict[str, Any] | None = Field(default=None, description="set if checkpoints hold only trained parameters")
    grid: GridConfig | None = Field(default=None, description="set if the model's weights are rounded to this grid")
    head: Head = Field(default="causal_lm", description="output of the model: the next token, or a score")
    compute: Literal["float32", "bfloat16"] = Field(
        default="float32", description="number format of forward and backward in training, and of exports unless --dtype is given"
    )


@dataclass(frozen=True, kw_only=True)
class TokenizerPlan:
    """The tokenizer of a run: its folder and its record."""

    folder: StoragePath
    record: TokenizerRecord


def read_record(run: RunDir) -> ModelRecord | None:
    """Read the record of a run's model; None if the run has not started to train, or never trains."""
    values = read_json(run.model_record)
    return ModelRecord.model_validate(values) if values else None


def require_record(run: RunDir) -> ModelRecord:
    """Read the record of a run's model. Raises ConfigError if there is none."""
    record = read_record(run)
    if record is None:
        job = run.record.get("job")
        raise ConfigError(f"run {run.id}: this {job} run has no model (no {run.model_record.name}); name a training run")
    return record


def tokenizer_of(manifests: list[Manifest], data: Data) -> TokenizerPlan:
    """Return the one tokenizer of all these data sets. Raises ConfigError if they differ."""
    first = manifests[0].tokenizer
    for source, manifest in zip(weighted(data), manifests, strict=True):
        if manifest.tokenizer.hash != first.hash:
            raise ConfigError(
                f"data: {source.path} was made with the tokenizer {manifest.tokenizer.name} ({manifest.tokenizer.hash}), "
                f"{weighted(data)[0].path} with {first.name} ({first.hash}); preprocess them with one tokenizer"
            )
    return TokenizerPlan(folder=StoragePath(weighted(data)[0].path).child(first.path), record=first)


def write_record(run: RunDir, record: ModelRecord, tokenizer: TokenizerPlan) -> None:
    """Write `model.json` and copy the tokenizer, unless an earlier attempt did. Called on rank 0."""
    if run.model_record.is_file():
        return
    names = tokenizer.folder.names()
    if not names:
        raise CheckpointError(f"{tokenizer.folder.url}: the tokenizer is missing, without which the model is useless; restore it")
    run.tokenizer.mkdir(exist_ok=True)
    for name in names:
        (run.tokenizer / name).write_bytes(tokenizer.folder.read(name))
    write_json(run.model_record, record.model_dump(mode="json"))  # last: its presence means that the tokenizer is complete


def checkpoint_folder(run: RunDir) -> StoragePath:
    """Return the directory of a training run's checkpoints, for any job."""
    return folder_of(run, CheckpointConfig.model_validate(run.record["config"].get("checkpoint") or {}))


def copy_tokenizer(run: RunDir, directory: Path) -> None:
    """Copy a run's tokenizer into a model's directory."""
    if not run.tokenizer.is_dir():
        raise CheckpointError(f"{run.tokenizer}: is missing, without which the model is useless; copy it from the run's data set")
    shutil.copytree(run.tokenizer, directory, dirs_exist_ok=True)


def open_weights(directory: Path) -> None:
    """Give weights the permissions of other new files: safetensors writes files that only their owner can read."""
    probe = directory / ".permissions"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for file in directory.rglob("*.safetensors"):
        file.chmod(mode)


def find_source_run(run: RunDir, word: str, key: str) -> RunDir:
    """Return the run that `key` names, by id beside `run` or by directory. Raises ConfigError."""
    for path in (run.path.parent / word, Path(word)):
        if (path / "run.yaml").is_file():
            return RunDir(path)
    raise ConfigError(f"{key}: no run {word!r} beside this one; give its full id, or its directory")

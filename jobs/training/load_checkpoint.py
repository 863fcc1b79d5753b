"""The model of a run's checkpoint, in one piece and in one process."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import CheckpointError, ConfigError
from cluster.run.directory import RunDir
from cluster.storage import StoragePath
from datapipe.manifest import read_manifest as read_data_manifest
from jobs.registry import config_of, find_job
from jobs.training.config import StartFrom
from jobs.training.model import config_of_identity, identity_of, whole_model
from jobs.training.token_data import weighted
from sharding.checkpoint import newest_complete
from sharding.config import CheckpointConfig
from sharding.floats import nulled
from sharding.layout import place_of
from sharding.manifest import CheckpointManifest
from sharding.state import MODEL
from sharding.storage import parse_index, read_tensors

if TYPE_CHECKING:
    from jobs.pretrain.config import PretrainConfig


def training_config(run: RunDir) -> "PretrainConfig":
    """The configuration of a run that trained a model. Raises ConfigError for a run of another kind."""
    job = str(run.record["job"])
    config: Any = config_of(find_job(job)).model_validate(run.record["config"])
    if not hasattr(config, "checkpoint") or not hasattr(config, "data"):
        raise ConfigError(f"run {run.id}: is a {job} run, which has no model; name a run that trained one")
    result: PretrainConfig = config
    return result


def checkpoints_of(run: RunDir) -> CheckpointConfig:
    """Where a run that trained a model has its checkpoints."""
    return training_config(run).checkpoint


def find_donor(run: RunDir, start: StartFrom) -> RunDir:
    """The run that `start_from` names: one that lies beside this one, or a directory. Raises ConfigError."""
    for path in (run.path.parent / start.run, Path(start.run)):
        if (path / "run.yaml").is_file():
            return RunDir(path)
    raise ConfigError(f"start_from.run: no run {start.run!r} beside this one; give its whole id, or its directory")


def tokenizer_place(run: RunDir) -> StoragePath:
    """Where the tokenizer of a run's data lies."""
    place = StoragePath(weighted(training_config(run).data)[0].path)
    return place.child(read_data_manifest(place).tokenizer.path)


def checkpointed_model(run: RunDir, step: int | None = None) -> tuple[Any, CheckpointManifest]:
    """The whole model of the newest complete checkpoint (or that of `step`), on the CPU in fp32, ready for use."""
    config = training_config(run)
    folder, manifest = newest_complete(place_of(run, config.checkpoint), step)
    shape = config_of_identity(manifest.identity)
    model: Any = whole_model(shape, seed=config.seed, weights=False)
    tensors = read_tensors(folder, parse_index(folder.read(manifest.index), folder.url), MODEL)
    names = {name for name, _ in model.named_parameters()}
    if missing := sorted(names - tensors.keys()):
        raise CheckpointError(f"{folder.url}: lacks {', '.join(missing[:3])}; export an older step")
    model.load_state_dict(tensors, strict=False)  # a tied weight is there once
    identity = identity_of(model.config)
    assert manifest.identity in (identity, nulled(identity))
    return model.eval(), manifest

"""Weights of registered versions: the newest checkpoint of a run, its pins, and the comparison with the registered hash."""

import shutil
from contextlib import suppress
from pathlib import Path

from ropewalk.cluster.errors import CheckpointError, ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.exclusive import create_whole
from ropewalk.cluster.run.files import json_text, read_json, write_json
from ropewalk.jobs.runs.models.model_versions import Version, exported_directory
from ropewalk.jobs.training.loop.architecture.model_record import checkpoint_folder, require_record
from ropewalk.jobs.training.loop.weights.content_hash import hash_of_checkpoint, hash_of_directory
from ropewalk.sharding.checkpoints.layout import complete_steps, pin, unpin


def newest_step(run: RunDir) -> int:
    """Return the step of a run's newest complete checkpoint. Raises ConfigError, CheckpointError."""
    require_record(run)
    steps = complete_steps(checkpoint_folder(run))
    if not steps:
        raise CheckpointError(f"{run.id} has no complete checkpoint yet; wait for one, or name another run")
    return steps[-1]


def keep_checkpoint(run: RunDir, step: int, version: str) -> None:
    """Protect a checkpoint from deletion while a version of the registry needs it."""
    pin(checkpoint_folder(run), step, f"model-{version}")


def unpin_checkpoint(run: RunDir, step: int, version: str) -> None:
    """Allow that a checkpoint is deleted as far as this version needs it."""
    with suppress(ConfigError):  # the run was deleted
        unpin(checkpoint_folder(run), step, f"model-{version}")


def require_present(version: Version) -> None:
    """Raise ConfigError if the version was removed."""
    if version.removed is not None:
        raise ConfigError(f"{version.id} was removed by {version.removed.get('by')}; promote {version.ref} as a new version")


def check_weights(version: Version) -> None:
    """Read all weights of a version. Raises ConfigError unless they are those that were registered, and the version exists."""
    require_present(version)
    if version.path is not None:
        if hash_of_directory(version.directory) != version.weights:
            raise ConfigError(
                f"{version.id}: the weights in {version.path} are not those that were registered; restore them, or promote the "
                "directory as a new version"
            )
    elif (directory := exported_directory(version)) is not None:
        weights = hash_of_directory(directory)
        create_whole(_record(directory), json_text({"weights": weights}))  # unless the export has recorded it
        if (read_json(_record(directory)) or {}).get("weights") != weights:
            raise ConfigError(
                f"{version.id}: the weights in {directory} are not those that were exported; remove the directory, and it is "
                "exported again"
            )
    elif hash_of_checkpoint(RunDir(version.root / str(version.run)), int(version.step or 0)) != version.weights:
        raise ConfigError(f"{version.id}: the checkpoint {version.ref} is not the registered one; promote it as a new version")


def publish_export(exported: Path, directory: Path) -> None:
    """Move an exported checkpoint to the directory of its version, and record its weights. Raises OSError if that exists."""
    weights = hash_of_directory(exported)
    if not directory.exists():
        _record(directory).unlink(missing_ok=True)  # of an earlier export, whose directory was removed
    exported.rename(directory)
    write_json(_record(directory), {"weights": weights})


def delete_export(directory: Path) -> None:
    """Delete an exported directory with the record of its weights. Raises OSError."""
    if directory.exists():
        hidden = directory.with_name(f".{directory.name}.removed")  # a reader sees the whole directory or none
        directory.rename(hidden)
        shutil.rmtree(hidden)
    _record(directory).unlink(missing_ok=True)


def _record(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.json")

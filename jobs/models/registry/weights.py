"""Identity of a version's weights: a hash of a checkpoint or a directory."""

import hashlib
import json
from pathlib import Path

from ropewalk.cluster.errors import CheckpointError, ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.training.loop.model_record import checkpoint_folder, require_record
from ropewalk.sharding.layout import MANIFEST_NAME, complete_steps, directory_of, pin

_WEIGHTS = (".safetensors", ".bin", ".gguf")
_BESIDE = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")  # these files change answers, too


def newest_step(run: RunDir) -> int:
    """Return the step of a run's newest complete checkpoint. Raises ConfigError, CheckpointError."""
    require_record(run)
    steps = complete_steps(checkpoint_folder(run))
    if not steps:
        raise CheckpointError(f"{run.id} has no complete checkpoint yet; wait for one, or name another run")
    return steps[-1]


def hash_of_checkpoint(run: RunDir, step: int) -> str:
    """Return a hash of a checkpoint's content from the checksums in its manifest. Raises CheckpointError."""
    require_record(run)
    storage = checkpoint_folder(run)
    try:
        files = json.loads(storage.read(f"{directory_of(step)}/{MANIFEST_NAME}"))["files"]
    except (FileNotFoundError, ValueError, KeyError):
        steps = ", ".join(map(str, complete_steps(storage))) or "none"
        raise CheckpointError(f"{run.id} has no complete checkpoint of step {step}; its steps: {steps}") from None
    entries = sorted((file["path"], file["size"], file["checksum"]) for file in files)
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def keep_checkpoint(run: RunDir, step: int, version: str) -> None:
    """Protect a checkpoint from deletion while a version of the registry needs it."""
    pin(checkpoint_folder(run), step, f"model-{version}")


def hash_of_directory(path: Path) -> str:
    """Return a hash of a Hugging Face directory's weights and the files that determine its answers. Raises ConfigError."""
    weights = sorted(file for file in path.iterdir() if file.suffix in _WEIGHTS)
    if not weights:
        raise ConfigError(f"{path}: has no weights ({', '.join(f'*{suffix}' for suffix in _WEIGHTS)}); name a model directory")
    total = hashlib.sha256()
    for file in [*weights, *(path / name for name in _BESIDE)]:
        if file.is_file():
            with file.open("rb") as stream:
                total.update(f"{file.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()

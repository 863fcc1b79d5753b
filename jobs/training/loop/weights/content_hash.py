"""Content hashes of models: of a checkpoint by the checksums in its manifest, of a Hugging Face directory by its bytes."""

import hashlib
import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ropewalk.cluster.errors import CheckpointError, ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json, write_json
from ropewalk.jobs.runs.models.find_model import find_checkpoint
from ropewalk.jobs.training.loop.architecture.model_record import checkpoint_folder, require_record
from ropewalk.sharding.checkpoints.layout import MANIFEST_NAME, complete_steps, directory_of

log = logging.getLogger(__name__)

_WEIGHTS = (".safetensors", ".bin", ".gguf")
_BESIDE = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")  # these files change answers, too
_THREADS = 4
_REPORT_SECONDS = 10.0
_JUDGED = "judged_weights.json"  # in the run's directory: hash of the directory that its first attempt began to judge


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


def hash_of_directory(path: Path) -> str:
    """Return a hash of a Hugging Face directory's weights and the files that determine its answers. Raises ConfigError."""
    weights = sorted(file for file in path.iterdir() if file.suffix in _WEIGHTS) if path.is_dir() else []
    if not weights:
        raise ConfigError(f"{path}: has no weights ({', '.join(f'*{suffix}' for suffix in _WEIGHTS)}); name a model directory")
    files = [file for file in [*weights, *(path / name for name in _BESIDE)] if file.is_file()]
    total, done, reported = sum(file.stat().st_size for file in files), 0, time.monotonic()
    digest = hashlib.sha256()
    with ThreadPoolExecutor(_THREADS) as pool:
        for file, of_file in zip(files, pool.map(_digest, files), strict=True):
            digest.update(f"{file.name} {of_file}\n".encode())
            done += file.stat().st_size
            if time.monotonic() - reported > _REPORT_SECONDS:
                reported = time.monotonic()
                log.warning("%s: %.1f of %.1f GiB of its weights are hashed", path, done / 2**30, total / 2**30)
    return digest.hexdigest()


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_of_model(source: RunDir | Path, step: int | None) -> str:
    """Return the content hash of a directory, or of a run's checkpoint. Raises ConfigError, CheckpointError."""
    if isinstance(source, Path):
        return hash_of_directory(source)
    assert step is not None, "a checkpoint has a step"
    return hash_of_checkpoint(source, step)


class JudgedWeights:
    """Content hash of the model that a run judges; a directory must not change until all attempts of the run have judged it."""

    def __init__(self, run: RunDir, ref: str) -> None:
        """Hash a directory before it is opened, in the first attempt. Raises ConfigError."""
        self.source, self.file = find_checkpoint(ref, run.path.parent).source, run.path / _JUDGED
        if isinstance(self.source, Path) and read_json(self.file) is None:
            write_json(self.file, {"weights": hash_of_directory(self.source)})

    def hash(self, step: int | None) -> str:
        """Return the hash of the judged weights. Raises ConfigError if they have changed since the run began to judge them."""
        weights = hash_of_model(self.source, step)
        if (recorded := read_json(self.file)) and recorded["weights"] != weights:
            raise ConfigError(f"model: the weights in {self.source} have changed while they were judged; start a new run")
        return weights

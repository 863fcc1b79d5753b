"""Path of a model's GGUF file, without importing torch, for callers that find the file in place."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from ropewalk.cluster.errors import CheckpointError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.runs.models.find_model import find_checkpoint
from ropewalk.jobs.training.loop.architecture.model_record import checkpoint_folder
from ropewalk.sharding.checkpoints.layout import complete_steps

MODEL_FILES = {".json", ".safetensors", ".bin", ".jinja"}


class GgufPlace(NamedTuple):
    """A GGUF file that exists or can be written, and its model."""

    path: Path
    model: Path  # a run's directory, or a Hugging Face directory
    step: int | None  # of a run's checkpoint


def gguf_place(model: str | Path, type_name: str, root: Path | None = None) -> GgufPlace:
    """Return the file of a run's newest checkpoint, or of the present content of a Hugging Face directory.

    Raises ConfigError if the model does not exist, CheckpointError for a run without a checkpoint.
    """
    location, step = find_checkpoint(str(model), root)
    if not isinstance(location, RunDir):
        return GgufPlace(location / "gguf" / f"{_content_key(location)}-{type_name}.gguf", location, None)
    if step is None:
        steps = complete_steps(checkpoint_folder(location))
        if not steps:
            raise CheckpointError(f"{location.id}: has no complete checkpoint yet; wait for one, or name another run")
        step = steps[-1]
    return GgufPlace(location.path / "gguf" / f"step-{step:08d}-{type_name}.gguf", location.path, step)


def _content_key(directory: Path) -> str:
    """Return a short name that changes with the files of a model directory."""
    files = sorted(path for path in directory.iterdir() if path.suffix in MODEL_FILES)
    stats = [(path.name, (stat := path.stat()).st_size, stat.st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:12]

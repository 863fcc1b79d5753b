"""Where the GGUF file of a model lies that is written beside it; light, so that whoever finds one there need not import torch."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from ropewalk.cluster.errors import CheckpointError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.runs.models.find_model import find_checkpoint
from ropewalk.jobs.training.loop.model_record import checkpoint_folder
from ropewalk.sharding.layout import complete_steps

MODEL_FILES = {".json", ".safetensors", ".bin", ".jinja"}


class GgufPlace(NamedTuple):
    """A file that is there or can be made, and of which model."""

    path: Path
    model: Path  # a run's directory, or a Hugging Face directory
    step: int | None  # of a run's checkpoint


def gguf_place(model: str | Path, type_name: str, root: Path | None = None) -> GgufPlace:
    """The file of a run's newest checkpoint, or of a Hugging Face directory as its files are now.

    Raises ConfigError where there is no such model, CheckpointError for a run without a checkpoint.
    """
    found, step = find_checkpoint(str(model), root)
    if not isinstance(found, RunDir):
        return GgufPlace(found / "gguf" / f"{_content_key(found)}-{type_name}.gguf", found, None)
    if step is None:
        steps = complete_steps(checkpoint_folder(found))
        if not steps:
            raise CheckpointError(f"{found.id}: has no complete checkpoint yet; wait for one, or name another run")
        step = steps[-1]
    return GgufPlace(found.path / "gguf" / f"step-{step:08d}-{type_name}.gguf", found.path, step)


def _content_key(directory: Path) -> str:
    """A short name that changes with the files of a model directory."""
    files = sorted(path for path in directory.iterdir() if path.suffix in MODEL_FILES)
    stated = [(path.name, (found := path.stat()).st_size, found.st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps(stated).encode()).hexdigest()[:12]

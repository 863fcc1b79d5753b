"""Keys of the `preprocess` job."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from ropewalk.cluster.config import HANGS, RANKS, WEIGHTS, JobConfig
from ropewalk.cluster.errors import ConfigError, DataError
from ropewalk.cluster.input_paths import PathView
from ropewalk.cluster.spec import Engine
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.execution.config import ArrayOptions
from ropewalk.datapipe.filters.registry import need_own_code
from ropewalk.datapipe.passes.config import DataSetConfig

LEAST_TOKENS = 512  # vocabulary of a trained tokenizer without any text: 256 bytes, special tokens, and some to spare


class PreprocessConfig(DataSetConfig, JobConfig):
    """Keys of a data set, and of the execution of its tasks."""

    usual_keys = (
        *("input", "output", "tokenizer.train", "tokenizer.path", "text_key", "filters", "near_duplicates", "language", "pii"),
        *("decontaminate", "validation_fraction", "actors", "seed", "name", "resources.nodes", "resources.cpus"),
        "resources.time_limit_minutes",
    )
    hidden_keys = HANGS | RANKS | WEIGHTS | {"resources.gpus"}

    actors: int | None = Field(
        default=None, ge=1, description="number of processes that work on the data; unset: one per CPU of the run's nodes"
    )
    fanout: Literal["ray", "array"] = Field(
        default="ray",
        description="run tasks on the run's nodes (on several nodes by Ray), or in a Slurm array that the run submits",
    )
    array: ArrayOptions = Field(default=ArrayOptions(), description="settings of fanout=array")

    @model_validator(mode="after")
    def _keys_of_the_fanout(self) -> "PreprocessConfig":
        if self.fanout == "ray" and self.array != ArrayOptions():
            raise ValueError("array.* requires fanout=array, but fanout is 'ray'; set fanout=array")
        if self.fanout == "array" and self.actors is not None:
            raise ValueError("actors is the number of processes on the run's nodes; with fanout=array, set array.at_once instead")
        if self.fanout == "array" and self.resources.nodes.most > 1:
            raise ValueError(
                "fanout=array uses one node for its driver (resources.nodes=1); array.at_once limits the number of array tasks"
            )
        return self

    def own_code(self) -> bool:
        """Return True if a filter or the function of `augment` is the user's own."""
        return need_own_code(self.filters) or bool(self.augment and self.augment.function)

    def preferred_engine(self) -> Engine | None:
        """Return the engine `process` for an array, whose run is only the driver, and for one node, which needs no Ray."""
        return Engine.PROCESS if self.fanout == "array" or self.resources.nodes.most == 1 else None

    def preflight(self, here: PathView = Path) -> None:
        """Check that local inputs are read, and that the output is not theirs nor another data set's.

        Raises ConfigError, DataError.
        """
        inputs = [(pattern, path) for pattern in self.input if _is_local(pattern) and (path := here(pattern)) is not None]
        for pattern, path in inputs:
            if path.is_dir() and Path(self.output).is_relative_to(pattern):
                raise ConfigError(f"output: {self.output!r} is inside the input {pattern!r}; choose a directory outside")
        for pattern in self.decontaminate.against if self.decontaminate else ():
            if _is_local(pattern) and (path := here(pattern)) is not None:
                _require(pattern, path, "decontaminate.against")
        local = self.tokenizer.path
        if local and local.startswith("/") and (path := here(local)) is not None and not path.exists():
            raise ConfigError(f"tokenizer.path: {local}: no such file or directory")
        output = here(self.output) if _is_local(self.output) else None
        if output is not None and output.is_file():
            raise ConfigError(f"output: {self.output!r} is a file; choose a directory")
        self._check_documents(inputs)
        if output is not None and output.is_dir():
            from ropewalk.datapipe.passes.plan import refuse_other_settings

            refuse_other_settings(StoragePath(output), self, self.seed)

    def _check_documents(self, inputs: Sequence[tuple[str, Path]]) -> None:
        """Raise DataError for inputs that are not read or have no text, ConfigError if they are too short for the tokenizer."""
        from ropewalk.datapipe.inputs.files import MOST_LISTED, first_files
        from ropewalk.datapipe.inputs.keys import missing_key

        files = [file for pattern, path in inputs for file in first_files("input", pattern, path)]
        if message := missing_key(files, self.text_key):
            raise DataError(message)
        uncompressed = len(inputs) == len(self.input) and all(file.kind in {"lines", "text"} for file in files)
        most = LEAST_TOKENS + sum(file.size for file in files)  # each further token needs a byte of text at least
        if uncompressed and len(files) < MOST_LISTED and (self.tokenizer.train or 0) > most:
            raise ConfigError(
                f"tokenizer.train: {most - LEAST_TOKENS:,} bytes of input cannot give {self.tokenizer.train:,} tokens; set a"
                " smaller vocabulary, add documents, or use an existing tokenizer (tokenizer.path)"
            )


def _is_local(path: str) -> bool:
    return not re.match(r"^[a-z0-9+]+:", path)


def _require(pattern: str, path: Path, key: str) -> None:
    if path.exists():
        return
    import glob

    if not glob.has_magic(pattern):
        raise DataError(f"{key} {pattern!r}: no such file or directory")
    if next(glob.iglob(str(path), recursive=True), None) is None:
        raise DataError(f"{key} {pattern!r}: matches no file; check the path, or use ** to include subdirectories")

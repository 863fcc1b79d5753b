"""The tokenized data sets of a job's configuration. Light, since job files are read and completed with it."""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.input_paths import PathView, TokensPath
from ropewalk.cluster.section import Section

if TYPE_CHECKING:
    from ropewalk.datapipe.manifest import Manifest

TEXTS = (".jsonl", ".gz", ".zst", ".parquet", ".txt", ".md")  # endings of documents that were not preprocessed


class WeightedData(Section):
    """A data set of a mixture."""

    path: TokensPath = Field(description="directory or URL of a data set made by preprocess")
    weight: float = Field(default=1.0, gt=0, description="weight of its samples relative to the other data sets")


Data = TokensPath | list[WeightedData]


def weighted(data: Data) -> list[WeightedData]:
    """Return the data sets of a mixture; a single path is a mixture of one."""
    return [WeightedData(path=data)] if isinstance(data, str) else data


def check_data(data: Data, here: PathView = Path, seq_len: int | None = None) -> list["Manifest"]:
    """Return the manifests of the local data sets that this machine can access.

    Raises ConfigError or DataError unless each is complete, and has a training sequence of `seq_len` tokens.
    """
    from ropewalk.cluster.storage import StoragePath
    from ropewalk.datapipe.manifest import MANIFEST_NAME

    if not data:
        raise ConfigError("data: the list is empty; name at least one data set")
    manifests = []
    for source in weighted(data):
        folder = StoragePath(source.path)
        local = here(source.path) if folder.local is not None else None
        if local is None:
            continue
        if not (local / MANIFEST_NAME).is_file():
            raise ConfigError(f"data: {source.path}{_seen_as(local, source.path)} {_missing(local, source.path)}")
        manifests.append(_read_manifest(local, (local / MANIFEST_NAME).stat().st_mtime_ns))
        longest = manifests[-1].table.train.longest
        if seq_len is not None and longest <= seq_len:
            total = manifests[-1].totals.train.tokens
            raise ConfigError(
                f"seq_len: no sequence of {seq_len:,} tokens fits in {source.path}, which has {total:,} training tokens, up to"
                f" {longest:,} in a shard; set a smaller seq_len, or preprocess more text"
            )
    return manifests


@lru_cache(maxsize=64)
def _read_manifest(folder: Path, _modified: int) -> "Manifest":
    """Read a manifest once for all runs of a submission, as long as it was not modified."""
    from ropewalk.cluster.storage import StoragePath
    from ropewalk.datapipe.manifest import read_manifest

    return read_manifest(StoragePath(folder))


def _seen_as(local: Path, path: str) -> str:
    return "" if str(local) == path else f" (seen here as {local})"


def _missing(local: Path, path: str) -> str:
    """Describe a directory that holds no complete data set, with the command that makes one."""
    if not local.exists():
        return f"does not exist; make it with `ropewalk run preprocess output={path}`"
    documents = local if local.is_file() else next((file for file in local.iterdir() if file.name.endswith(TEXTS)), None)
    if documents is not None:
        target = Path(path).with_name(f"{Path(path).name.partition('.')[0]}-tokens")
        source = path if local.is_dir() else f"[{path}]"
        return (
            f"holds documents, not a data set; make one with `ropewalk run preprocess input={source} output={target}"
            f" 'tokenizer={{train: 8192}}'`, then set data={target}"
        )
    return f"is not complete (no manifest.json); make it with `ropewalk run preprocess output={path}`"

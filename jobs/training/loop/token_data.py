"""The tokenized data sets that a job names. Job files are read and completed with it: nothing else is imported on top."""

from pathlib import Path

from pydantic import Field

from ropewalk.cluster.config import DataPath, PathView, Section
from ropewalk.cluster.errors import ConfigError


class WeightedData(Section):
    """One data set of a mixture."""

    path: DataPath = Field(description="a directory or URL that preprocess made")
    weight: float = Field(default=1.0, gt=0, description="share of the samples, relative to the other data sets")


Data = DataPath | list[WeightedData]


def weighted(data: Data) -> list[WeightedData]:
    """The data sets of a mixture; a single path is a mixture of one."""
    return [WeightedData(path=data)] if isinstance(data, str) else data


def check_data(data: Data, here: PathView = Path) -> None:
    """Raise ConfigError unless every local data set that this machine sees is there and complete."""
    from ropewalk.cluster.storage import StoragePath
    from ropewalk.datapipe.manifest import MANIFEST_NAME

    if not data:
        raise ConfigError("data: the list is empty; name at least one data set")
    for source in weighted(data):
        place = StoragePath(source.path)
        local = here(source.path) if place.local is not None else None
        if local is not None and not (local / MANIFEST_NAME).is_file():
            what = "is not complete (no manifest.json)" if local.exists() else "does not exist"
            seen = "" if str(local) == source.path else f" (seen here as {local})"
            raise ConfigError(f"data: {source.path}{seen} {what}; make it with `ropewalk run preprocess output={source.path}`")

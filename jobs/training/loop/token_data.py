"""The tokenized data sets of a job's configuration. Light, since job files are read and completed with it."""

from pathlib import Path

from pydantic import Field

from ropewalk.cluster.config import PathView, Section, TokensPath
from ropewalk.cluster.errors import ConfigError


class WeightedData(Section):
    """A data set of a mixture."""

    path: TokensPath = Field(description="directory or URL of a data set made by preprocess")
    weight: float = Field(default=1.0, gt=0, description="weight of its samples relative to the other data sets")


Data = TokensPath | list[WeightedData]


def weighted(data: Data) -> list[WeightedData]:
    """Return the data sets of a mixture; a single path is a mixture of one."""
    return [WeightedData(path=data)] if isinstance(data, str) else data


def check_data(data: Data, here: PathView = Path) -> None:
    """Raise ConfigError unless every local data set that this machine can access is complete."""
    from ropewalk.cluster.storage import StoragePath
    from ropewalk.datapipe.manifest import MANIFEST_NAME

    if not data:
        raise ConfigError("data: the list is empty; name at least one data set")
    for source in weighted(data):
        folder = StoragePath(source.path)
        local = here(source.path) if folder.local is not None else None
        if local is not None and not (local / MANIFEST_NAME).is_file():
            what = "is not complete (no manifest.json)" if local.exists() else "does not exist"
            shown_as = "" if str(local) == source.path else f" (seen here as {local})"
            raise ConfigError(
                f"data: {source.path}{shown_as} {what}; make it with `ropewalk run preprocess output={source.path}`"
            )

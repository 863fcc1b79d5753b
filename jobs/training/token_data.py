"""The tokenized data sets that a job names, and their common tokenizer."""

from pathlib import Path

from pydantic import Field

from cluster.config import DataPath, PathView, Section
from cluster.errors import ConfigError
from cluster.storage import StoragePath
from datapipe.manifest import MANIFEST_NAME, Manifest
from jobs.training.model_record import TokenizerPlan


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
    if not data:
        raise ConfigError("data: the list is empty; name at least one data set")
    for source in weighted(data):
        place = StoragePath(source.path)
        local = here(source.path) if place.local is not None else None
        if local is not None and not (local / MANIFEST_NAME).is_file():
            what = "is not complete (no manifest.json)" if local.exists() else "does not exist"
            seen = "" if str(local) == source.path else f" (seen here as {local})"
            raise ConfigError(f"data: {source.path}{seen} {what}; make it with `ropewalk run preprocess output={source.path}`")


def tokenizer_of(manifests: list[Manifest], data: Data) -> TokenizerPlan:
    """The one tokenizer that made all of these data sets. Raises ConfigError where there are several."""
    first = manifests[0].tokenizer
    for source, manifest in zip(weighted(data), manifests, strict=True):
        if manifest.tokenizer.hash != first.hash:
            raise ConfigError(
                f"data: {source.path} was made with the tokenizer {manifest.tokenizer.name} ({manifest.tokenizer.hash}), "
                f"{weighted(data)[0].path} with {first.name} ({first.hash}); preprocess them with one tokenizer"
            )
    return TokenizerPlan(place=StoragePath(weighted(data)[0].path).child(first.path), record=first)

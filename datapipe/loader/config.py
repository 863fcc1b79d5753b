"""The key `loader` of a job file."""

from pydantic import Field

from ropewalk.cluster.input_paths import DataPath
from ropewalk.cluster.section import Section


class LoaderConfig(Section):
    """Order in which sequences of a data set are read, and the cache for data on an object store."""

    block_samples: int | None = Field(
        default=None,
        ge=1,
        description="shuffle runs of so many consecutive sequences, and sequences within 64 such runs, so that data is read in"
        " large pieces; for data larger than memory or on an object store, about 16 MiB of tokens; unset: shuffle all sequences",
    )
    cache_gib: float = Field(default=16, gt=0, description="size of each node's cache of data on an object store, GiB")
    cache: DataPath | None = Field(
        default=None, description="folder of this cache; unset: in the node's temporary folder, which is on a local disk"
    )

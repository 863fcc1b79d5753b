"""Local copies of files of data sets on object stores, named by checksum and fetched once per machine."""

import fcntl
import shutil
from pathlib import Path

from ropewalk.cluster.errors import CorruptShardError
from ropewalk.cluster.run.files import cache_dir
from ropewalk.cluster.storage import StoragePath, retry
from ropewalk.datapipe.manifest import Manifest, checksum_of_file
from ropewalk.datapipe.shard_table import TABLE_NAME, ShardTable, open_table


def read_shards(data_set: StoragePath, manifest: Manifest) -> ShardTable:
    """Map the table of a data set's shards. Raises DataError, CorruptShardError."""
    if data_set.local is not None:
        return open_table(data_set.local / TABLE_NAME, data_set, manifest)
    return open_table(cached_file(data_set, TABLE_NAME, manifest.table.checksum), data_set, manifest)


def cached_file(data_set: StoragePath, name: str, checksum: str) -> Path:
    """Return the local copy of a remote file, fetching it if necessary. Raises CorruptShardError if the original is damaged."""
    folder = cache_dir() / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{checksum.replace(':', '-')}.arrow"
    with (folder / f".{path.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # only one rank of a node fetches a file
        if not path.exists() or _checksum(path) != checksum:
            _fetch(data_set, name, checksum, path)
    return path


def _fetch(data_set: StoragePath, name: str, checksum: str, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.part")
    url, source = f"{data_set.url}/{name}", data_set.path(name)
    try:
        retry(lambda: data_set.fs.get_file(source, str(temporary)), f"read {url}", data_set.patience_seconds)
        if (fetched := _checksum(temporary)) != checksum:
            raise CorruptShardError(
                f"{url}: expected checksum {checksum}, found {temporary.stat().st_size} bytes with {fetched}; upload it again"
            )
        shutil.move(temporary, path)
    except FileNotFoundError:
        raise CorruptShardError(f"{url}: no such file; upload it again") from None
    finally:
        temporary.unlink(missing_ok=True)


def _checksum(path: Path) -> str:
    return checksum_of_file(StoragePath(path.parent), path.name)

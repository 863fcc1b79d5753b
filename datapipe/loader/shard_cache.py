"""Local copies of shards from an object store, named by checksum and fetched once per machine."""

import fcntl
import shutil
from pathlib import Path

import xxhash

from ropewalk.cluster.errors import CorruptShardError
from ropewalk.cluster.run.files import cache_dir
from ropewalk.cluster.storage import StoragePath, retry
from ropewalk.datapipe.manifest import Shard


def cached_shard(data_set: StoragePath, shard: Shard) -> Path:
    """Return the local copy of a remote shard, fetching it if necessary. Raises CorruptShardError if the original is damaged."""
    folder = cache_dir() / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{shard.checksum.replace(':', '-')}.arrow"
    with (folder / f".{path.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # only one rank of a node fetches a shard
        if not path.exists() or _checksum(path) != shard.checksum:
            _fetch(data_set, shard, path)
    return path


def _fetch(data_set: StoragePath, shard: Shard, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.part")
    name = f"{data_set.url}/{shard.path}"
    source = data_set.path(shard.path)
    try:
        retry(lambda: data_set.fs.get_file(source, str(temporary)), f"read {name}", data_set.patience_seconds)
        checksum = _checksum(temporary)
        if checksum != shard.checksum:
            size = temporary.stat().st_size
            raise CorruptShardError(
                f"{name}: expected {shard.size} bytes and checksum {shard.checksum}, found {size} bytes and {checksum}; "
                "upload it again, or set on_corrupt=quarantine"
            )
        shutil.move(temporary, path)
    except FileNotFoundError:
        raise CorruptShardError(
            f"{name}: expected {shard.size} bytes, found no file; upload it again, or set on_corrupt=quarantine"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 24):
            digest.update(chunk)
    return f"xxh3:{digest.hexdigest()}"

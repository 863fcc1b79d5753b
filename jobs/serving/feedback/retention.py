"""Retention of captured content: an age and a size for all stores of a run, also after the run has ended."""

import logging
import math
import time
from operator import itemgetter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ropewalk.cluster.errors import RopewalkError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.serving.feedback.config import CaptureConfig
from ropewalk.jobs.serving.feedback.records import FOLDER, exchanges_store, judgements_store, ratings_store, samples_store
from ropewalk.jobs.serving.feedback.store import DAY_SECONDS, TIME, Store, newest_time

log = logging.getLogger(__name__)

EXCHANGE_TIME = "exchange_time"


def enforce(folder: Path, config: CaptureConfig, now: float | None = None) -> int:
    """Delete what is too old, then the oldest shards beyond `max_bytes`; return the number of deleted records.

    Feedback is as old as its exchange. A clock that is ahead deletes nothing recent: age is counted from the newest record, or
    from the newest run in the same folder if that is later, and at most the oldest day is deleted at a time.
    """
    stores = [store(folder) for store in (exchanges_store, ratings_store, samples_store, judgements_store)]
    for store in stores:
        store.roll()  # spools of dead writers
    tables = [list(store.tables()) for store in stores]
    newest = max((pc.max(table[TIME]).as_py() for each in tables for table in each if table.num_rows), default=0.0)
    now = min(time.time() if now is None else now, max(newest, folder.parent.parent.stat().st_mtime))
    rolled = (table for each in tables for table in each[:-1] if table.num_rows)  # the last ones, of spools, cannot be rewritten
    oldest = min((pc.min(_age(table)).as_py() for table in rolled), default=math.inf)
    moment = min(now - config.retention_days * DAY_SECONDS, oldest + DAY_SECONDS)
    deleted = sum(store.delete(lambda table: pc.less(_age(table), moment)) for store in stores)
    for exported in (folder / "review").glob("*.jsonl"):  # copies that `ropewalk review` made
        if exported.stat().st_mtime < moment:
            exported.unlink()
    return deleted + _delete_beyond(stores, config.max_bytes)


def enforce_retention(run: RunDir) -> int:
    """Enforce the retention of a run's configuration; return the number of deleted records."""
    folder = run.path / FOLDER
    capture = (run.record.get("config") or {}).get("capture") if folder.is_dir() else None
    return enforce(folder, CaptureConfig.model_validate(capture)) if capture else 0


def enforce_beside(folder: Path) -> None:
    """Enforce the retention of all other runs in the root of the run that owns a feedback folder."""
    for run in RunDir.all(folder.parent.parent):
        if run.path != folder.parent:
            try:
                enforce_retention(run)
            except (OSError, ValueError, RopewalkError) as error:
                log.warning("feedback: retention of %s failed: %s", run.id, error)


def _age(table: pa.Table) -> pa.ChunkedArray:
    """Return the time from which the age of each record counts: that of its exchange."""
    return pc.coalesce(table[EXCHANGE_TIME], table[TIME]) if EXCHANGE_TIME in table.schema.names else table[TIME]


def _delete_beyond(stores: list[Store], max_bytes: int) -> int:
    """Delete the oldest shards until at most `max_bytes` are left; return the number of deleted records."""
    excess, deleted = sum(store.num_bytes() for store in stores) - max_bytes, 0
    shards = sorted(((newest_time(path), path, store) for store in stores for path in store.shards()), key=itemgetter(0))
    for _, path, store in shards:
        if excess <= 0:
            break
        excess -= path.stat().st_size
        deleted += store.delete(lambda table: pc.is_valid(table[TIME]), path)
    return deleted

"""Messages about a save through the group's store: each rank reports its file to rank 0, which announces the outcome.

They are sent by background threads, whose collectives would mix with those of training.
"""

import json
from datetime import timedelta

from torch.distributed import DistNetworkError, DistStoreError, Store

from ropewalk.cluster.errors import StaleAttemptError, StorageError
from ropewalk.sharding.checkpoints.manifest import FileRecord

SaveError = StaleAttemptError | StorageError


class SaveReports:
    """The messages of one save, which `number` identifies on all ranks."""

    def __init__(self, store: Store, number: int, rank: int, world_size: int, timeout: timedelta) -> None:
        self._store, self._number, self._rank, self._timeout = store, number, rank, timeout
        self._others = [self._key(rank) for rank in range(1, world_size)]

    def _key(self, who: int | str, number: int | None = None) -> str:
        return f"save/{self._number if number is None else number}/{who}"

    def send(self, record: FileRecord | None, error: SaveError | None) -> None:
        """Report to rank 0 what this rank has written, if anything, or that it failed."""
        message = {"file": record.model_dump() if record is not None else None, "error": _to_json(error)}
        self._store.set(self._key(self._rank), json.dumps(message))

    def collect(self) -> tuple[list[FileRecord], list[SaveError]]:
        """Return the files of the other ranks, in their order, and their errors. Raises StorageError if a rank is silent."""
        if not self._others:
            return [], []
        try:
            self._store.wait(self._others, self._timeout)
        except DistStoreError:
            silent = [rank for rank, key in enumerate(self._others, 1) if not self._store.check([key])]
            raise StorageError(
                f"no part of the checkpoint from {', '.join(f'rank {rank}' for rank in silent[:8])} within {self._timeout}"
                " (parallel.timeout_minutes): look at the logs of these ranks"
            ) from None
        messages = [json.loads(raw) for raw in self._store.multi_get(self._others)]
        for key in [*self._others, self._key("outcome", self._number - 1)]:
            self._store.delete_key(key)
        files = [FileRecord.model_validate(message["file"]) for message in messages if message["file"] is not None]
        return files, [error for message in messages if (error := _from_json(message["error"])) is not None]

    def give_up(self, store: Store) -> None:
        """Report for the ranks that have not done so that they failed. `store`: a connection that no other thread uses."""
        message = json.dumps({"file": None, "error": _to_json(StorageError("a rank was lost during the save"))})
        for key in self._others:
            store.compare_set(key, "", message)

    def announce(self, error: SaveError | None) -> None:
        """Tell the other ranks that the checkpoint is committed, or why not."""
        if self._others:
            self._store.set(self._key("outcome"), json.dumps(_to_json(error)))

    def outcome(self) -> SaveError | None:
        """Wait for rank 0's announcement. Raises RuntimeError if rank 0 is gone."""
        key = self._key("outcome")
        try:
            self._store.wait([key], 2 * self._timeout)  # rank 0 itself waits for one
            return _from_json(json.loads(self._store.get(key)))
        except DistNetworkError as error:
            raise RuntimeError(f"connection closed by peer: the store of rank 0: {error}") from error
        except DistStoreError:
            return StorageError(f"rank 0 has not committed the checkpoint within {2 * self._timeout}: look at its log")


def _to_json(error: SaveError | None) -> list[object] | None:
    return None if error is None else [isinstance(error, StaleAttemptError), str(error)]


def _from_json(message: list[object] | None) -> SaveError | None:
    if message is None:
        return None
    return (StaleAttemptError if message[0] else StorageError)(str(message[1]))

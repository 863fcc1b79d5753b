"""One save in the background: copy, write this rank's file, agree with the other ranks through the store, commit."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from torch.distributed import Store

from ropewalk.cluster.errors import RopewalkError, StaleAttemptError, StorageError
from ropewalk.cluster.storage import StoragePath
from ropewalk.sharding.checkpoints.manifest import FileRecord
from ropewalk.sharding.checkpoints.save_reports import SaveError, SaveReports

log = logging.getLogger(__name__)


class BackgroundSave:
    """A save in progress on this rank; the thread ends with the process."""

    def __init__(
        self,
        folder: StoragePath,
        reports: SaveReports,
        *,
        copy: Callable[[], Any],
        write: Callable[[Any], FileRecord | None],
        commit: Callable[[list[FileRecord]], None] | None,
    ) -> None:
        """`commit` is called on rank 0 with the files of all ranks, once they are durable; None on other ranks."""
        self._folder, self._reports, self._copy, self._write, self._commit = folder, reports, copy, write, commit
        self._copied = threading.Event()
        self._result: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="ropewalk-checkpoint", daemon=True)
        self._thread.start()

    @property
    def copying(self) -> bool:
        return not self._copied.is_set()

    def wait_for_copy(self) -> None:
        """Wait until the state may change."""
        self._copied.wait()

    @property
    def failed(self) -> bool:
        return self._result.done() and self._result.exception() is not None

    def wait(self) -> None:
        """Wait until the checkpoint is committed. Raises the error that prevented it, the same one on every rank."""
        self._result.result()

    def abandon(self, messages: Store) -> None:
        """Wait for no rank any more whose file is missing. Called on rank 0, with a connection to the store of its own."""
        self._reports.give_up(messages)

    def join(self) -> None:
        """Wait until the thread has ended, whatever became of the save."""
        self._thread.join()

    def _run(self) -> None:
        try:
            error = self._save()
        except Exception as unexpected:  # it belongs to whoever waits for the save
            self._result.set_exception(unexpected)
        else:
            if error is None:
                self._result.set_result(None)
            else:
                self._result.set_exception(error)

    def _save(self) -> SaveError | None:
        record, error = None, None
        try:
            try:
                data = self._copy()
            finally:
                self._copied.set()
            record = self._write(data)
        except Exception as cause:  # the other ranks must learn of it
            error = self._explained(cause)
        if self._commit is None:
            self._reports.send(record, error)
            return self._reports.outcome()
        error = self._committed(self._commit, record, error)
        self._reports.announce(error)
        return error

    def _committed(
        self, commit: Callable[[list[FileRecord]], None], record: FileRecord | None, error: SaveError | None
    ) -> SaveError | None:
        """Commit on rank 0 if every rank has written its file; returns the error that explains the failure best."""
        try:
            files, errors = self._reports.collect()
            errors = [error, *errors] if error is not None else errors
            if not errors:
                commit([record, *files] if record is not None else files)
            return next((each for each in errors if isinstance(each, StaleAttemptError)), errors[0] if errors else None)
        except Exception as cause:  # the other ranks must learn of it
            return error or self._explained(cause)

    def _explained(self, cause: Exception) -> SaveError:
        """Return the error for people. An unknown storage error is worth another attempt."""
        if isinstance(cause, StaleAttemptError | StorageError):
            return cause
        log.warning("%s: the checkpoint is not saved", self._folder.url, exc_info=cause)
        text = str(cause) if isinstance(cause, RopewalkError) else f"{type(cause).__name__}: {cause}"
        return StorageError(f"{self._folder.url}: the checkpoint was not saved: {text}")

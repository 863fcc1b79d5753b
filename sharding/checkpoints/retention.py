"""Removal of a run's old checkpoints, beside the saves that follow."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ropewalk.cluster.errors import RopewalkError
from ropewalk.cluster.run.fence import Fence
from ropewalk.cluster.storage import StoragePath
from ropewalk.sharding.checkpoints.layout import (
    MANIFEST_NAME,
    complete_steps,
    directory_of,
    is_pinned,
    listed_steps,
    write_step_list,
)

log = logging.getLogger(__name__)


class Retention:
    """Keeps the newest `keep` complete checkpoints of a run, the best one, and those that another run has pinned."""

    def __init__(self, root: StoragePath, fence: Fence, keep: int) -> None:
        self.root, self.fence, self.keep = root, fence, keep
        self.bad: set[int] = set()  # steps whose checkpoints are damaged: they do not count
        self._lock = threading.Lock()  # of the list of steps
        self._thread: threading.Thread | None = None

    @contextmanager
    def steps(self, *, added: int) -> Iterator[None]:
        """List a step, and hold the list while its manifest is written."""
        with self._lock:
            write_step_list(self.root, {*listed_steps(self.root), added})
            yield
            self.bad.discard(added)

    def start(self, best_step: int | None) -> None:
        """Remove old checkpoints in a thread of its own: many files take longer than a save may wait."""
        earlier = self._thread

        def prune() -> None:
            if earlier is not None:
                earlier.join()
            try:
                self.prune(best_step)
            except (OSError, RopewalkError) as error:
                log.warning("%s: old checkpoints are not removed: %s", self.root.url, error)

        self._thread = threading.Thread(target=prune, name="ropewalk-retention", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def prune(self, best_step: int | None) -> None:
        """Remove old checkpoints."""
        with self._lock:
            complete = [step for step in complete_steps(self.root) if step not in self.bad]
            removed = [step for step in complete[: -self.keep] if step != best_step and not is_pinned(self.root, step)]
            if removed:
                write_step_list(self.root, set(complete).difference(removed))
        for step in removed:
            self.remove(step)

    def discard_after(self, step: int) -> None:
        """Remove the checkpoints of later steps."""
        with self._lock:
            complete = complete_steps(self.root)
            if complete and complete[-1] > step:
                write_step_list(self.root, [each for each in complete if each <= step])
        for later in complete:
            if later > step:
                self.remove(later)

    def remove(self, step: int) -> None:
        """Remove a checkpoint, its manifest first, so that none looks complete with half of its files."""
        self.fence.check()
        self.root.remove(f"{directory_of(step)}/{MANIFEST_NAME}")
        self.root.remove(directory_of(step))

"""Writes that may fail without ending the process, such as status files on a full disk."""

import logging
from types import TracebackType

log = logging.getLogger(__name__)


class OptionalWrites:
    """Context that suppresses OSError: the first error of a series is logged, and then the end of the series with its length."""

    def __init__(self, subject: str) -> None:
        """`subject`: the name of the files in log messages."""
        self.subject, self.failures = subject, 0

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if error is None and self.failures:
            log.warning("%s: written again after %d failures", self.subject, self.failures)
            self.failures = 0
        if not isinstance(error, OSError):
            return False
        if not self.failures:
            log.warning("%s: not written, and tried again until there is room: %s", self.subject, error)
        self.failures += 1
        return True

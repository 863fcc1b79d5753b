"""Reports of requests and fetches to people: the command line replaces them."""

import logging
from collections.abc import Callable

log = logging.getLogger(__name__)


def _silent(label: str, present_bytes: int, total_bytes: int) -> None:
    pass


notify: Callable[[str], None] = log.warning
show: Callable[[str, int, int], None] = _silent

"""Tie the life of an engine's process to that of the process that started it."""

import os
import select
import threading


def end_with_parent(parent: int) -> None:
    """Watch process `parent` in a thread, and exit immediately when it is gone."""
    try:
        descriptor = os.pidfd_open(parent)
    except ProcessLookupError:
        os._exit(1)
    if os.getppid() != parent:  # it died, and its pid may be reused
        os._exit(1)

    def watch() -> None:
        select.select([descriptor], [], [])
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()

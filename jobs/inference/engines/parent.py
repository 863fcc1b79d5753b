"""An engine's process ends with the process that started it, however that ended."""

import os
import select
import threading


def end_with_parent(parent: int) -> None:
    """Watch process `parent` by a thread, and leave this process at once when it is gone."""
    try:
        descriptor = os.pidfd_open(parent)
    except ProcessLookupError:
        os._exit(1)
    if os.getppid() != parent:  # it died, and its number may be another's by now
        os._exit(1)

    def watch() -> None:
        select.select([descriptor], [], [])
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()

"""Processes that may end while a test looks at them."""

import psutil


def words_of(process: psutil.Process) -> list[str]:
    """Its command line; none where it ends just now."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []

"""Processes that may end while a test looks at them."""

import psutil


def words_of(process: psutil.Process) -> list[str]:
    """Command line of a process; empty if it has ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []

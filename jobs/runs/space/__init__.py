"""Disk space: removal of runs that nothing refers to, and of files that no run needs."""

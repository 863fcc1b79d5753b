"""Run directories: paths, record, attempts, events, and fencing of stale attempts."""

"""Where a process of ours writes: its log lines, and the file that its output goes to."""

import logging
import os
import sys
from pathlib import Path


def redirect_output(path: Path) -> None:
    """Send this process's stdout and stderr to the end of a log file."""
    sys.stdout.flush()
    sys.stderr.flush()
    with path.open("ab", buffering=0) as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)


def configure_logging(label: str) -> None:
    """Log one line an event, with the time and `label`, the name of this process; $ROPEWALK_LOG_LEVEL sets the level."""
    logging.basicConfig(
        level=os.environ.get("ROPEWALK_LOG_LEVEL", "INFO").upper(),
        format=f"%(asctime)s {label} %(levelname)s %(name)s: %(message)s",
        force=True,
    )

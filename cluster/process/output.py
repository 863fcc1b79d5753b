"""Log format and output files of processes."""

import logging
import os
import sys
from pathlib import Path


def redirect_output(path: Path) -> None:
    """Append this process's stdout and stderr to a log file."""
    sys.stdout.flush()
    sys.stderr.flush()
    with path.open("ab", buffering=0) as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)


def configure_logging(label: str) -> None:
    """Set the log format: one line per event, with time and `label`, this process's name. $ROPEWALK_LOG_LEVEL sets the level."""
    logging.basicConfig(
        level=os.environ.get("ROPEWALK_LOG_LEVEL", "INFO").upper(),
        format=f"%(asctime)s {label} %(levelname)s %(name)s: %(message)s",
        force=True,
    )

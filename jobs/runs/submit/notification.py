"""The user's file of receivers of notifications, of which a submission only needs to know that it exists."""

import os
from pathlib import Path

NOTIFY_SIDECAR = "ropewalk.jobs.runs.notify.notify"  # recorded in runs whose owner is notified
FILE_VARIABLE = "ROPEWALK_NOTIFY"
DEFAULT_FILE = Path("~/.config/ropewalk/notify.yaml")


def notify_file() -> Path:
    """Return the user's file, which may not exist."""
    return Path(os.environ.get(FILE_VARIABLE) or DEFAULT_FILE).expanduser()

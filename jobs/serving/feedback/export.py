"""Write a run's feedback to a file for another job, and read the times that a user names."""

import re
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.serving.feedback.read import Feedback
from ropewalk.jobs.serving.feedback.training_data import Made, to_conversations, to_documents, to_pairs, write_records

_UNITS = {"m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


def moment(words: str, now: float | None = None) -> float:
    """Seconds since the epoch of `7d`, `12h`, `30m` ago, or of a date. Raises ConfigError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", words)
    if match:
        return (now or time.time()) - float(match[1]) * _UNITS[match[2]]
    try:
        return datetime.fromisoformat(words).timestamp()
    except ValueError:
        raise ConfigError(f"{words!r} is no time: give 7d, 12h, 30m, or a date such as 2026-11-27 or 2026-11-27T10:00") from None


def export_feedback(run: RunDir, found: Feedback, kind: str, path: Path) -> dict[str, Any]:
    """Write one kind of training data; what was written, and what was left out by reason. Raises ConfigError."""
    makers: dict[str, Callable[[], Made]] = {
        "pairs": lambda: to_pairs(found.exchanges),
        "chats": lambda: to_conversations(found.exchanges),
        "documents": lambda: to_documents(found.exchanges, run.id),
    }
    if kind not in makers:
        raise ConfigError(f"--export {kind}: there are {', '.join(makers)}")
    made = makers[kind]()
    write_records(path, made.records)
    return {"kind": kind, "file": str(path), "records": len(made.records), "left_out": dict(made.left_out)}

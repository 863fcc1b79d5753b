"""Export of a run's feedback as training data, and parsing of times that users enter."""

import re
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.serving.feedback.read import exchanges
from ropewalk.jobs.serving.feedback.training_data import TrainingData, to_conversations, to_documents, to_pairs, write_records

_UNITS = {"m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


def parse_time(text: str, now: float | None = None) -> float:
    """Parse a time before now (`7d`, `12h`, `30m`) or a date; returns seconds since the epoch. Raises ConfigError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text)
    if match:
        return (now or time.time()) - float(match[1]) * _UNITS[match[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise ConfigError(
            f"{text!r} is not a time; write 7d, 12h, 30m, or a date such as 2026-11-27 or 2026-11-27T10:00"
        ) from None


def export_feedback(run: RunDir, since: float | None, kind: str, path: Path) -> dict[str, Any]:
    """Write training data of the exchanges since a time; return {kind, file, records, left_out}. Raises ConfigError."""
    converters: dict[str, Callable[[], TrainingData]] = {
        "pairs": lambda: to_pairs(exchanges(run.path, since)),
        "chats": lambda: to_conversations(exchanges(run.path, since)),
        "documents": lambda: to_documents(exchanges(run.path, since), run.id),
    }
    if kind not in converters:
        raise ConfigError(f"--export {kind}: unknown kind; choose {', '.join(converters)}")
    data = converters[kind]()
    write_records(path, data.records)
    return {"kind": kind, "file": str(path), "records": len(data.records), "left_out": dict(data.left_out)}

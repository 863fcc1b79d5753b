"""Export of a run's feedback as training data, and parsing of times that users enter."""

import re
import time
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.serving.feedback.read import exchanges
from ropewalk.jobs.serving.feedback.training_data import Record, to_conversations, to_documents, to_pairs, write_records

KINDS = ("pairs", "chats", "documents")
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
    if kind not in KINDS:
        raise ConfigError(f"--export {kind}: unknown kind; choose {', '.join(KINDS)}")
    captured, left_out = exchanges(run.path, since), Counter[str]()
    if kind == "documents":
        records: Iterable[Record] = to_documents(captured, run.id, left_out)
    else:
        data = to_pairs(captured) if kind == "pairs" else to_conversations(captured)
        records, left_out = data.records, data.left_out
    return {"kind": kind, "file": str(path), "records": write_records(path, records), "left_out": dict(left_out)}

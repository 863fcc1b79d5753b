"""A serving run's directory with captured exchanges and ratings, made without a server."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.serving.feedback.config import CaptureConfig
from ropewalk.jobs.serving.feedback.exchange import FEEDBACK, Exchange, Frame, exchange_frame, take_frames
from ropewalk.jobs.serving.feedback.records import FOLDER
from ropewalk.jobs.serving.feedback.writer import CaptureWriter


def frame_of(exchange: Exchange) -> Frame:
    """An exchange as the writer receives it."""
    (result,) = take_frames(bytearray(b"".join(exchange_frame(exchange, captured=True))))
    return result


def serving_run(root: Path, exchanges: Iterable[Exchange], ratings: Iterable[dict[str, Any]] = (), **config: Any) -> RunDir:
    """A run of `serve` that captured these exchanges, nothing masked, and was told these ratings."""
    record = {"job": "serve", "cluster": "local", "config": {"capture": config or None}, "resources": {"nodes": 1}}
    run = RunDir.create("serve", record, root)
    writer = CaptureWriter(run.path / FOLDER, CaptureConfig(mask=(), retention_days=1e5))
    writer.write([frame_of(exchange) for exchange in exchanges])
    posts = [Frame(FEEDBACK, {"id": f"rating-{n}"}, json.dumps(rating).encode(), b"") for n, rating in enumerate(ratings)]
    assert all(status == 200 for status, _ in writer.write(posts)["feedback"].values())
    writer.close()
    return run

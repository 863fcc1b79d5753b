"""Tracker for trackio: a database in the run directory, unless TRACKIO_DIR, TRACKIO_SPACE_ID or TRACKIO_SERVER_URL is set."""

import os
from functools import partial
from importlib.util import find_spec
from typing import Any

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.runs.mirror.trackers import tracker_folder

if find_spec("trackio") is None:
    raise ModuleNotFoundError("trackio; pip install 'ropewalk[trackio]'")


class Trackio:
    """One trackio run for all attempts. trackio itself stores metrics that a server does not accept, and sends them later."""

    def __init__(self, run: RunDir) -> None:
        # before the import of trackio, which reads the environment
        os.environ.setdefault("TRACKIO_DIR", str(tracker_folder(run, "trackio")))
        import trackio

        config = run.record.get("config") or {}
        project = (config.get("wandb") or {}).get("project") or "ropewalk"
        self._open = partial(trackio.init, project, run.id, resume="allow", config=config, embed=False)
        self._run: Any = None

    def log(self, step: int, metrics: dict[str, float], seconds: float) -> None:
        if self._run is None:
            self._run = self._open(auto_log_gpu=False, auto_log_cpu=False)
        self._run.log(metrics, step=step)

    def flush(self) -> None:
        """Close the run, which is the only way to wait for trackio's thread; the next `log` reopens it."""
        if self._run is not None:
            self._run.finish()
            self._run = None

"""trackio: a database in the run directory, or wherever TRACKIO_DIR, TRACKIO_SPACE_ID or TRACKIO_SERVER_URL say."""

import os
from functools import partial
from importlib.util import find_spec
from typing import Any

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.runs.mirror.trackers import place_of

if find_spec("trackio") is None:
    raise ModuleNotFoundError("trackio; pip install 'ropewalk[trackio]'")


class Trackio:
    """One run of trackio's for all attempts. What a server does not take, trackio itself keeps and sends later."""

    def __init__(self, run: RunDir) -> None:
        # before trackio is imported: it reads the environment once
        os.environ.setdefault("TRACKIO_DIR", str(place_of(run, "trackio")))
        import trackio

        config = run.record.get("config") or {}
        project = (config.get("wandb") or {}).get("project") or "ropewalk"
        self._open = partial(trackio.init, project, run.id, resume="allow", config=config, embed=False)
        self._run: Any = None

    def log(self, step: int, metrics: dict[str, float], seconds: float) -> None:
        """Hand over the metrics of a step."""
        if self._run is None:
            self._run = self._open(auto_log_gpu=False, auto_log_cpu=False)
        self._run.log(metrics, step=step)

    def flush(self) -> None:
        """Close the run, which is the one way to wait for trackio's thread; the next step opens it again."""
        if self._run is not None:
            self._run.finish()
            self._run = None

"""What a serving run tells of itself: its address, its load, and metrics."""

import os
import time
from collections.abc import Mapping
from typing import Any

from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.files import append_line, read_json, write_json
from ropewalk.cluster.text import counted
from ropewalk.jobs.serving.serve.files import LocalFiles, ServingFiles, read_load

TELL_SECONDS = 1.0
METRIC_SECONDS = 10.0
COUNTS = ("requests", "errors", "running", "queued")


class Progress:
    """Writes the small files that `show`, `ps` and a followed run read."""

    def __init__(self, context: JobContext, files: ServingFiles, local: LocalFiles) -> None:
        self.context, self.files, self.local = context, files, local
        self._began, self._next, self._next_metrics = time.time(), 0.0, time.monotonic() + METRIC_SECONDS
        self._address = ""
        self._tell("loading", {})

    def publish(self, found: dict[str, Any]) -> None:
        """Write down where the run listens."""
        self._address = str(found["address"])
        address = {"address": found["address"], "port": found["port"], "node": os.uname().nodename}
        write_json(self.files.address, {**address, "attempt": self.context.attempt, "pid": found.get("pid")})
        self.context.run.event("listens", address=found["address"])

    def look(self) -> None:
        """Tell the progress once a second, and metrics every ten."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + TELL_SECONDS
        load = read_load(self.local.load)
        state = read_json(self.files.state) or {}
        load["replicas_serving"] = self._replicas()
        write_json(self.files.load, load, durable=False)
        self._tell("serving" if state.get("stable") else "loading", load)
        if now >= self._next_metrics:
            self._next_metrics = now + METRIC_SECONDS
            self._measure(load)

    def _replicas(self) -> int:
        routes = read_json(self.local.routes) or {}
        return sum(len(version.get("replicas") or ()) for version in (routes.get("versions") or {}).values())

    def _tell(self, stage: str, load: Mapping[str, Any]) -> None:
        requests = sum(int(each.get("requests", 0)) for each in (load.get("versions") or {}).values())
        report = {"stage": stage, "done": requests, "total": None, "unit": "requests", "words": self._words(load)}
        write_json(self.context.run.progress, report, durable=False)

    def _words(self, load: Mapping[str, Any]) -> str:
        """`main@3 at http://127.0.0.1:8000, 2 replicas, 3.1 requests/s`."""
        state = read_json(self.files.state) or {}
        versions = state.get("versions") or {}
        name = state.get("stable") or next(iter(versions), str(self.context.run.record["config"]["model"]))
        rate = float(load.get("requests_per_second", 0.0))
        place = f" at {self._address}" if self._address else ""
        return f"{name}{place}, {counted(load.get('replicas_serving', 0), 'replica')}, {rate:.1f} requests/s"

    def _measure(self, load: dict[str, Any]) -> None:
        counts = (load.get("versions") or {}).values()
        values = {
            "serve/requests_per_second": float(load.get("requests_per_second", 0.0)),
            "serve/replicas": load["replicas_serving"],
            **{
                f"serve/{key}": sum(int(each.get(key, 0)) for each in counts)
                for key in ("requests", "errors", "running", "queued")
            },
        }
        step = round(time.time() - self._began)
        append_line(self.context.run.metrics, {"step": step, "attempt": self.context.attempt, "time": time.time(), **values})

    def close(self) -> None:
        """Say that nobody listens any more."""
        found = read_json(self.files.address)
        if found:
            write_json(self.files.address, {**found, "closed": time.time()})

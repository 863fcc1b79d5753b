"""Progress of a serving run: address, load and metrics."""

import os
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.files import append_line, read_json, write_json
from ropewalk.cluster.run.optional_writes import OptionalWrites
from ropewalk.cluster.text import counted
from ropewalk.jobs.serving.serve.files import LocalFiles, ServingFiles, read_load

UPDATE_SECONDS = 1.0
METRIC_SECONDS = 10.0
COUNTS = ("requests", "errors", "running", "queued")


class Progress:
    """Writes the small files that `show`, `ps` and following runs read."""

    def __init__(self, context: JobContext, files: ServingFiles, local: LocalFiles) -> None:
        self.context, self.files, self.local = context, files, local
        self._started_at, self._next_update, self._next_metrics = time.monotonic(), 0.0, time.monotonic() + METRIC_SECONDS
        self.address = ""  # once it is published
        self._writes = OptionalWrites(f"progress of {context.run.id}")
        with self._writes:
            self._write_stage("loading", {})

    def publish(self, address: str) -> None:
        """Write the address for clients. Raises OSError."""
        record = {"address": address, "port": urlsplit(address).port, "node": os.uname().nodename}
        write_json(self.files.address, {**record, "attempt": self.context.attempt})
        self.address = address
        self.context.run.event("listens", address=address)

    def update(self) -> None:
        """Write the progress once a second, and metrics every ten seconds."""
        now = time.monotonic()
        if now < self._next_update:
            return
        self._next_update = now + UPDATE_SECONDS
        with self._writes:
            self._write(now)

    def _write(self, now: float) -> None:
        load = read_load(self.local.load)
        state = read_json(self.files.state) or {}
        versions = (read_json(self.local.routes) or {}).get("versions") or {}
        load["replicas_serving"] = sum(len(version.get("replicas") or ()) for version in versions.values())
        write_json(self.files.load, load, durable=False)
        self._write_stage("serving" if state.get("stable") else "loading", load)
        if now >= self._next_metrics:
            self._next_metrics = now + METRIC_SECONDS
            self._measure(load)

    def _write_stage(self, stage: str, load: Mapping[str, Any]) -> None:
        requests = sum(int(version.get("requests", 0)) for version in (load.get("versions") or {}).values())
        report = {"stage": stage, "done": requests, "total": None, "unit": "requests", "words": self._summary(load)}
        write_json(self.context.run.progress, report, durable=False)

    def _summary(self, load: Mapping[str, Any]) -> str:
        """`main@3 at http://127.0.0.1:8000, 2 replicas, 3.1 requests/s`."""
        state = read_json(self.files.state) or {}
        versions = state.get("versions") or {}
        name = state.get("stable") or next(iter(versions), str(self.context.run.record["config"]["model"]))
        rate = float(load.get("requests_per_second", 0.0))
        location = f" at {self.address}" if self.address else ""
        return f"{name}{location}, {counted(load.get('replicas_serving', 0), 'replica')}, {rate:.1f} requests/s"

    def _measure(self, load: dict[str, Any]) -> None:
        counts = (load.get("versions") or {}).values()
        values = {
            "serve/requests_per_second": float(load.get("requests_per_second", 0.0)),
            "serve/replicas": load["replicas_serving"],
            **{f"serve/{key}": sum(int(version.get(key, 0)) for version in counts) for key in COUNTS},
        }
        step = round(time.monotonic() - self._started_at)
        append_line(self.context.run.metrics, {"step": step, "attempt": self.context.attempt, "time": time.time(), **values})

    def close(self) -> None:
        """Record that nothing listens at the address any more."""
        address = read_json(self.files.address)
        if address:
            with self._writes:
                write_json(self.files.address, {**address, "closed": time.time()})

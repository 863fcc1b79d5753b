"""Entry of the `serve` job: supervises the gateway, which answers clients, and the controller, which runs the replicas.

Restarts either when it dies, writes the run's progress, and lets open requests finish before the run stops.
"""

import logging
import os
import secrets
import time

from ropewalk.cluster.errors import StopRequested
from ropewalk.cluster.fresh_reads import read_json_afresh
from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.cluster.run.names import RAY_HEAD
from ropewalk.cluster.run.optional_writes import OptionalWrites
from ropewalk.jobs.inference.engines.engine import TOKEN_VARIABLE
from ropewalk.jobs.serving.serve.child import Child
from ropewalk.jobs.serving.serve.config import ServeConfig
from ropewalk.jobs.serving.serve.files import LocalFiles, ServingFiles, open_requests, read_load
from ropewalk.jobs.serving.serve.gateway.settings import GatewaySettings
from ropewalk.jobs.serving.serve.gateways import Gateways, address_of, listen
from ropewalk.jobs.serving.serve.handover import Handover
from ropewalk.jobs.serving.serve.progress import Progress

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.1
RAY_LOOK_SECONDS = 1.0
MARGIN = 0.2  # share of the grace period reserved for shutdown; at most MARGIN_SECONDS
MARGIN_SECONDS = 10.0
CAPTURE_SECONDS = 5.0  # for what was captured to be stored, after the last request


def main(context: JobContext) -> dict[str, object]:
    """Serve until the run is asked to stop. Raises StopRequested then, or RuntimeError if nothing can be served."""
    run = Serving(context)
    try:
        return run.serve()
    finally:
        run.close()


class Serving:
    """One attempt of a serving run."""

    def __init__(self, context: JobContext) -> None:
        self.context, self.config = context, context.config(ServeConfig)
        self.files, self.local = ServingFiles(context.run), LocalFiles()
        self.files.make()
        self.local.make()
        self.handover = Handover(context, self.config)
        self.progress = Progress(context, self.files, self.local)
        self.gateways: Gateways | None = None
        self.controller: Child | None = None
        self._writes = OptionalWrites("address of the run")
        self._ray_starts: int | None = None
        self._next_ray_look = 0.0
        self._stop_noticed = 0.0  # monotonic time at which the stop was noticed; 0: not yet

    def serve(self) -> dict[str, object]:
        """Run gateway and controller until a stop; return the results of a run that has handed over."""
        self._start()
        successor = None
        while successor is None and not self.context.stop_requested():
            if self.handover.due():
                successor = self._hand_over()
            self._wait()
        if successor is None:
            successor = self._hand_over()
        open_at_end = self._drain()
        self.context.run.event("serving_stopped", attempt=self.context.attempt, open=open_at_end)
        if successor is not None:
            return {"handed_over_to": successor.id}
        raise StopRequested(f"{open_at_end} requests were open")

    def _hand_over(self) -> RunDir | None:
        """Serve until the successor answers or this run must stop; None if there is no successor."""
        successor = self.handover.start()
        while successor is not None and not self.handover.is_serving(successor) and not self._must_leave():
            if self.handover.failed:
                return None
            self._wait()
        return successor

    def _wait(self) -> None:
        self._check_parts()
        time.sleep(LOOK_SECONDS)

    def _start(self) -> None:
        context = self.context
        self.files.routes.unlink(missing_ok=True)  # of an earlier attempt: its replicas are gone
        settings = gateway_settings(self.config, context.run, self.local)
        self.local.settings.write_text(settings.model_dump_json(indent=1))
        last = read_json(self.files.address) or {}
        logs = context.run.log_dir(context.attempt)
        secret = {TOKEN_VARIABLE: secrets.token_hex(16)}
        listening = listen(self.config.host, self.config.port, last_port=int(last.get("port") or 0))
        self._address = address_of(listening, "https" if self.config.tls is not None else "http")
        self.gateways = Gateways(listening, self.local.settings, logs / "gateway.log", secret)
        controller = module_command("ropewalk.jobs.serving.serve.controller", str(context.run.path))
        controller += ["--attempt", str(context.attempt), "--parent", str(os.getpid())]
        self.controller = Child("controller", controller, logs / "controller.log", secret)

    def _check_parts(self) -> None:
        if failure := read_json(self.local.failure):
            raise RuntimeError(f"nothing can be served: {failure['error']}")
        assert self.gateways is not None
        assert self.controller is not None
        deaths = [*(("gateway", code) for code in self.gateways.look()), ("controller", self.controller.restart_if_ended())]
        for part, code in deaths:
            if code is not None:
                self.context.run.event("serving_part_died", part=part, exit_code=code)
        self._follow_ray()
        if not self.progress.address:
            with self._writes:
                self.progress.publish(self._address)
        self.progress.update()

    def _follow_ray(self) -> None:
        """Replace the controller if Ray was started again: it is connected to the former one."""
        if time.monotonic() < self._next_ray_look:
            return
        self._next_ray_look = time.monotonic() + RAY_LOOK_SECONDS
        head = read_json_afresh(self.context.run.attempt_dir(self.context.attempt) / RAY_HEAD)
        if not head:
            return
        before, self._ray_starts = self._ray_starts, head["starts"]
        if self.controller is not None and before not in (None, self._ray_starts):
            self.controller.process.kill()

    def _must_leave(self) -> bool:
        """Return True if the grace period, which starts with the stop, is nearly over."""
        if not self.context.stop_requested():
            return False
        self._stop_noticed = self._stop_noticed or time.monotonic()
        grace = self.config.resources.grace_seconds
        return time.monotonic() >= self._stop_noticed + grace - min(MARGIN_SECONDS, MARGIN * grace)

    def _drain(self) -> int:
        """Refuse new requests and wait for open ones; return the number still open when it is time to stop."""
        with OptionalWrites("the request to refuse new requests"):
            self.local.closing.touch()
        load_time = read_load(self.local.load).get("time")
        deadline = time.monotonic() + self.config.update.drain_seconds
        while not self._must_leave() and time.monotonic() < deadline:
            load = read_load(self.local.load)
            refuses = (read_json(self.local.routes) or {}).get("accepting") is False
            if load.get("time") != load_time and not open_requests(load) and refuses:
                return 0
            self._wait()
        return open_requests(read_load(self.local.load))

    def close(self) -> None:
        """End gateway and controller; Ray and its replicas are ended by the engine that started them."""
        if self.controller is not None:
            self.controller.end()
        if self.gateways is not None:
            self.gateways.end(CAPTURE_SECONDS)
        self.progress.close()


def gateway_settings(config: ServeConfig, run: RunDir, local: LocalFiles) -> GatewaySettings:
    """Return the settings of the gateway, without secrets."""
    return GatewaySettings(
        routes=local.routes,
        load_file=local.load,
        auth=config.token_source,
        tls=config.tls,
        deadline_seconds=config.deadline_seconds,
        queue_seconds=config.queue_seconds,
        queue_requests=config.queue_requests,
        feedback_folder=run.path / "feedback",
        capture=config.capture,
    )

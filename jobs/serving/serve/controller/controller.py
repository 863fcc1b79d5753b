"""Control loop of a serving run: reconciles running applications with wanted versions, and publishes the routes.

No state is only in memory: a restarted controller reads the state file, finds the applications running, and continues.
"""

import faulthandler
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ropewalk.cluster.errors import RopewalkError
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.files import write_json
from ropewalk.cluster.run.optional_writes import OptionalWrites
from ropewalk.jobs.inference.engines.engine import TOKEN_VARIABLE, EngineOptions
from ropewalk.jobs.models.registry.deployments import State
from ropewalk.jobs.serving.serve.config import ServeConfig
from ropewalk.jobs.serving.serve.controller.applications import Applications, ApplicationStatus
from ropewalk.jobs.serving.serve.controller.probe import Probes
from ropewalk.jobs.serving.serve.controller.state import Phase, ServingState, Version
from ropewalk.jobs.serving.serve.controller.traffic import Observation, TrafficController
from ropewalk.jobs.serving.serve.drafts import draft_directory
from ropewalk.jobs.serving.serve.files import LocalFiles, ServingFiles, read_load
from ropewalk.jobs.serving.serve.models import Source, Wanted
from ropewalk.jobs.serving.serve.replica import ReplicaSpec
from ropewalk.jobs.serving.serve.routes import write_routes

log = logging.getLogger(__name__)
T = TypeVar("T")

LOOK_SECONDS = 0.25
WANTED_SECONDS = 0.5  # between reads of the registry
RETRY_SECONDS = 5.0  # between attempts to start a version on a full disk
UNNOTICED_SECONDS = 10.0  # several of Ray Serve's health checks
TICK_SECONDS = 30.0  # Ray may never answer a call to Ray Serve's controller if that dies meanwhile; this process is then replaced
FAILURE_SECONDS = 3.0  # the run fails if its first version has been refused and still wanted for this long
REPORTED_STATES: dict[str, State] = {  # event → state reported to the registry
    "version_loading": "loading",
    "canary_started": "canary",
    "version_serves": "serving",
    "version_refused": "refused",
}
_RUNS = frozenset({Phase.LOADING, Phase.PROBING, Phase.READY, Phase.LEAVING})


class Controller:
    """The controller of one attempt."""

    def __init__(self, context: JobContext, applications: Applications, source: Source, local: LocalFiles) -> None:
        self.context, self.applications, self.source, self.local = context, applications, source, local
        self.config = context.config(ServeConfig)
        self.files = ServingFiles(context.run)
        self.token = os.environ.get(TOKEN_VARIABLE) or None
        state = ServingState.read(self.files.state)
        self.state = state if state is not None and state.attempt == context.attempt else ServingState(attempt=context.attempt)
        self.state.alias = source.alias
        self.probes = Probes(self.config.update.probe, self.token, self.config.update.probe_seconds)
        self._models: dict[str, str] = {}  # run and step, or directory, by version
        self._preparing: dict[str, threading.Thread] = {}  # by application
        self._unprepared: dict[str, str] = {}  # error by application that could not be started
        self._wanted, self._wanted_at = Wanted(stable=self.state.stable), -math.inf
        self._registry_error = ""  # of the last read
        self._noticed_at = time.monotonic()  # when Ray Serve last knew of every dead replica
        self._written: dict[Path, object] = {}
        self._writes = {path: OptionalWrites(str(path)) for path in (self.files.state, self.local.routes, self.files.routes)}
        self._deploys, self._reverts = OptionalWrites("files of a new version"), OptionalWrites("the registry")
        self._name = f"serve {context.run.id}"
        self._reverted: set[str] = set()  # applications whose aliases were reverted already

    def run(self) -> str:
        """Run until the entry ends this process; return an error if nothing can be served.

        A round that does not end within TICK_SECONDS ends this process, with its stack in the log.
        """
        failure = ""
        while not failure:
            faulthandler.dump_traceback_later(TICK_SECONDS, exit=True)
            failure = self.tick()
            faulthandler.cancel_dump_traceback_later()
            time.sleep(0 if failure else LOOK_SECONDS)
        return failure

    def tick(self) -> str:
        """Run one round of the loop; return an error if nothing can be served, else an empty string."""
        if self.context.fence.has_successor():  # the agent ends this attempt; it must no longer write or move aliases
            return ""
        now = time.monotonic()
        wanted = self._read_wanted()
        running = self.applications.running()
        statuses = self.applications.observe({version.app for version in self.state.versions.values()}, running)
        self._restart_serve_that_misses_deaths(now, statuses)
        observations = self._observe(statuses)
        events = TrafficController(self.config, self.state, now).step(wanted, observations)
        for kind, fields in events:
            log.info("%s %s", kind, fields)
            self.context.run.event(kind, **fields)
            if kind in REPORTED_STATES:
                self.source.report(fields["version"], REPORTED_STATES[kind], str(fields.get("cause", "")), self._name)
        self._write(
            self.files.state, self.state.model_dump(mode="json"), lambda path, state: write_json(path, state, durable=False)
        )
        self._publish(statuses)
        self._reconcile(statuses, running)
        self._revert_aliases()
        return self._failure(now, wanted)

    # --- wanted and observed state

    def _read_wanted(self) -> Wanted:
        if time.monotonic() - self._wanted_at >= WANTED_SECONDS:
            self._wanted_at = time.monotonic()
            canary = self.config.canary.alias if self.config.canary is not None else None
            try:
                self._wanted, self._registry_error = self.source.wanted(canary, gated=self.config.update.gated), ""
            except Exception as error:  # whatever is wrong with the registry, the last known versions go on
                if str(error) != self._registry_error:
                    self._registry_error = str(error)
                    log.exception("the registry cannot be read; the serving versions stay")
                    self.context.run.event("registry_unreadable", error=str(error))
        return self._wanted

    def _restart_serve_that_misses_deaths(self, now: float, statuses: Mapping[str, ApplicationStatus]) -> None:
        """Restart Ray Serve's controller if it does not notice that a replica has died.

        It times its health checks by the wall clock: after the clock was put back it makes none until the former time.
        """
        if not any(status.unnoticed for status in statuses.values()):
            self._noticed_at = now
        elif now - self._noticed_at > UNNOTICED_SECONDS:
            log.warning("Ray Serve has not noticed for %.0f s that a replica died, and is restarted", now - self._noticed_at)
            self.applications.restart_serve()
            self._noticed_at = now

    def _observe(self, statuses: Mapping[str, ApplicationStatus]) -> dict[str, Observation]:
        counts = read_load(self.local.load).get("versions") or {}
        versions = self.state.versions.items()
        return {name: self._observe_version(version, statuses[version.app], counts.get(name) or {}) for name, version in versions}

    def _observe_version(self, version: Version, status: ApplicationStatus, counts: Mapping[str, Any]) -> Observation:
        return Observation(
            replicas=len(status.replicas),
            failed=self._unprepared.get(version.app) or status.failed,
            waits=status.waits,
            probe=self.probes.result(version.app),
            running=int(counts.get("running", 0)) + int(counts.get("queued", 0)),
            requests=int(counts.get("requests", 0)),
            errors=int(counts.get("errors", 0)),
        )

    # --- actions

    def _reconcile(self, statuses: Mapping[str, ApplicationStatus], running: Collection[str]) -> None:
        """Start wanted applications, delete the others, and probe those in the probing phase."""
        versions = {version.app: name for name, version in self.state.versions.items() if version.phase in _RUNS}
        for app, name in versions.items():
            # Ray Serve gives up after a few starts, as on a disk that is full for some seconds
            given_up = app in statuses and statuses[app].given_up
            if given_up and self.state.versions[name].phase is not Phase.LOADING:
                self.applications.delete(app)
                self._preparing.pop(app, None)
            elif app not in running and app not in self._preparing:
                thread = threading.Thread(target=self._prepare, args=(app, name), name=f"prepare-{app}", daemon=True)
                self._preparing[app] = thread
                thread.start()
        for app in running:
            if app not in versions:
                self.applications.delete(app)
                self.probes.forget(app)
        for name, version in self.state.versions.items():
            if version.phase is Phase.PROBING and version.app in statuses:
                self.probes.start(version.app, name, statuses[version.app].replicas)

    def _prepare(self, app: str, name: str) -> None:
        """Export the version's directory if necessary, and start its application.

        Tried again on a full disk, and for a version that has served: its entry may be damaged for a while.
        """
        try:
            draft = draft_directory(self.config.draft, self.files.models) if self.config.draft is not None else None
            model = self.source.directory(name, self.files.models)
            with self._deploys:
                self.applications.deploy(self._spec(app, name, model, draft))
                return
        except Exception as error:  # any error refuses a new version
            log.exception("version %s cannot be started", name)
            if self.state.versions[name].phase is Phase.LOADING:
                self._unprepared[app] = str(error)
                return
        time.sleep(RETRY_SECONDS)
        del self._preparing[app]

    def _spec(self, app: str, name: str, model: Path, draft: Path | None) -> ReplicaSpec:
        config, context = self.config, self.context
        resources = context.run.resources(context.attempt)
        return ReplicaSpec(
            app=app,
            version=name,
            model=str(model),
            engine=config.engine,
            engine_command=tuple(config.engine_command) if config.engine_command else None,
            options=EngineOptions(
                slots=config.slots,
                threads=math.ceil(config.cpus) if config.cpus else None,
                gpus=math.ceil(config.gpus),
                context=config.context,
                name=name,
                draft=draft,
                draft_tokens=config.draft_tokens,
                token=self.token,
            ),
            folder=str(self.files.replicas / f"{context.attempt:04d}" / app),
            load=str(self.files.load),
            logs=str(context.run.log_dir(context.attempt)),
            start_seconds=config.update.start_minutes * 60,
            drain_seconds=config.update.drain_seconds,
            own_address=resources.nodes.most > 1,
        )

    def _revert_aliases(self) -> None:
        """Point aliases of refused versions back to their previous version."""
        for name, version in self.state.versions.items():
            if version.phase is Phase.REFUSED and version.app not in self._reverted:
                with self._reverts:
                    changes = self.source.revert_aliases(name, version.cause, self._name)
                    self._reverted.add(version.app)
                    if changes:
                        self.context.run.event("aliases_reverted", version=name, changes=changes)
                    self._wanted_at = -math.inf

    def _publish(self, statuses: Mapping[str, ApplicationStatus]) -> None:
        replicas = {
            name: statuses[version.app].replicas for name, version in self.state.versions.items() if version.app in statuses
        }
        share = self.config.canary.share if self.config.canary is not None else 0.0
        models = {name: self._model(name) for name in self.state.versions}
        routes = self.state.build_routes(replicas, models, self.source.names, share, accepting=self._accepting())
        self._write(self.local.routes, routes, write_routes)
        self._write(self.files.routes, routes, write_routes)

    def _write(self, path: Path, value: T, write: Callable[[Path, T], None]) -> None:
        """Write a file unless it has this value; on a full disk it keeps its last value, and the next round tries again."""
        if self._written.get(path) != value:
            with self._writes[path]:
                write(path, value)
                self._written[path] = value

    def _model(self, name: str) -> str:
        """Return the run and step, or the directory, of a version."""
        if name not in self._models:
            try:
                self._models[name] = self.source.ref(name)
            except RopewalkError:
                return ""
        return self._models[name]

    def _accepting(self) -> bool:
        """Return True if new requests are accepted: until the entry closes, or without handover until a stop."""
        return not self.local.closing.exists() and (self.config.handover or not self.context.stop_requested())

    def _failure(self, now: float, wanted: Wanted) -> str:
        if self.state.stable is not None or wanted.stable is None:
            return ""
        version = self.state.versions.get(wanted.stable)
        if version is None or version.phase is not Phase.REFUSED or now - version.entered < FAILURE_SECONDS:
            return ""
        return f"{wanted.stable}: {version.cause}"

"""The controller of a serving run: it makes what runs like what is wanted, again and again, and publishes who answers.

Nothing is in its memory alone: a controller that is killed and started again reads the state, finds the applications running,
and goes on.
"""

import logging
import math
import os
import threading
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import RopewalkError
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.files import write_json
from ropewalk.jobs.inference.engines.engine import TOKEN_VARIABLE
from ropewalk.jobs.models.registry.deployments import State
from ropewalk.jobs.serving.serve.config import ServeConfig
from ropewalk.jobs.serving.serve.controller.applications import Applications, Found
from ropewalk.jobs.serving.serve.controller.probe import Probes
from ropewalk.jobs.serving.serve.controller.publish import routes_of
from ropewalk.jobs.serving.serve.controller.state import Phase, ServingState, Version
from ropewalk.jobs.serving.serve.controller.traffic import Rollout, Seen
from ropewalk.jobs.serving.serve.drafts import draft_directory
from ropewalk.jobs.serving.serve.files import LocalFiles, ServingFiles, read_load
from ropewalk.jobs.serving.serve.models import Source, Wanted
from ropewalk.jobs.serving.serve.replica import ReplicaSpec
from ropewalk.jobs.serving.serve.routes import Routes, write_routes

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.25
WANTED_SECONDS = 0.5  # between two looks at the registry
HOPELESS_SECONDS = 3.0  # for which the first version is refused and still wanted, before the run fails
TOLD: dict[str, State] = {  # events that the registry hears of
    "version_loading": "loading",
    "canary_started": "canary",
    "version_serves": "serving",
    "version_refused": "refused",
}
_RUNS = frozenset({Phase.LOADING, Phase.PROBING, Phase.READY, Phase.LEAVING})


class Controller:
    """One controller process."""

    def __init__(self, context: JobContext, applications: Applications, source: Source, local: LocalFiles) -> None:
        self.context, self.applications, self.source, self.local = context, applications, source, local
        self.config = context.config(ServeConfig)
        self.files = ServingFiles(context.run)
        self.token = os.environ.get(TOKEN_VARIABLE) or None
        state = ServingState.read(self.files.state)
        self.state = state if state is not None and state.attempt == context.attempt else ServingState(attempt=context.attempt)
        self.state.alias = source.alias
        self.probes = Probes(self.config.update.probe, self.token, self.config.update.probe_seconds)
        self._models: dict[str, str] = {}  # what routes say of each version's model
        self._preparing: dict[str, threading.Thread] = {}  # by application
        self._unprepared: dict[str, str] = {}  # why an application was not started
        self._wanted, self._wanted_at = Wanted(stable=self.state.stable), -math.inf
        self._published: Routes | None = None
        self._name = f"serve {context.run.id}"
        self._rejected: set[str] = set()  # applications whose version was taken back already

    def run(self) -> str:
        """Go on until the entry ends this process; returns why there is nothing to serve, if that is so."""
        while not (hopeless := self.tick()):
            time.sleep(LOOK_SECONDS)
        return hopeless

    def tick(self) -> str:
        """One round; returns why there is nothing to serve and never will be, or nothing."""
        now = time.time()
        wanted = self._want()
        running = self.applications.running()
        found = self.applications.look({version.app for version in self.state.versions.values()}, running)
        seen = self._seen(found)
        before = self.state.model_dump()
        events = Rollout(self.config, self.state, now).step(wanted, seen)
        for kind, fields in events:
            log.info("%s %s", kind, fields)
            self.context.run.event(kind, **fields)
            if kind in TOLD:
                self.source.tell(fields["version"], TOLD[kind], str(fields.get("cause", "")), self._name)
        if self.state.model_dump() != before:
            self.state.write(self.files.state)
        self._publish(found)
        self._reconcile(found, running)
        self._take_back()
        return self._hopeless(now, wanted)

    # --- what is wanted, and what is seen

    def _want(self) -> Wanted:
        if time.monotonic() - self._wanted_at >= WANTED_SECONDS:
            self._wanted_at = time.monotonic()
            canary = self.config.canary.alias if self.config.canary is not None else None
            try:
                self._wanted = self.source.wanted(canary, gated=self.config.update.gated)
            except (RopewalkError, OSError, ValueError) as error:  # a registry that cannot be read changes nothing
                log.warning("the registry cannot be read: %s", error)
        return self._wanted

    def _seen(self, found: Mapping[str, Found]) -> dict[str, Seen]:
        counts = read_load(self.local.load).get("versions") or {}
        versions = self.state.versions.items()
        return {name: self._seen_of(version, found[version.app], counts.get(name) or {}) for name, version in versions}

    def _seen_of(self, version: Version, found: Found, counts: Mapping[str, Any]) -> Seen:
        return Seen(
            replicas=len(found.replicas),
            failed=self._unprepared.get(version.app) or found.failed,
            waits=found.waits,
            probed=self.probes.of(version.app),
            running=int(counts.get("running", 0)) + int(counts.get("queued", 0)),
            requests=int(counts.get("requests", 0)),
            errors=int(counts.get("errors", 0)),
        )

    # --- what is done about it

    def _reconcile(self, found: Mapping[str, Found], running: Collection[str]) -> None:
        """Start the applications that are to run, end the others, and ask those that are to be asked."""
        named = {version.app: name for name, version in self.state.versions.items() if version.phase in _RUNS}
        for app, name in named.items():
            if app not in running and app not in self._preparing:
                thread = threading.Thread(target=self._prepare, args=(app, name), name=f"prepare-{app}", daemon=True)
                self._preparing[app] = thread
                thread.start()
        for app in running:
            if app not in named:
                self.applications.delete(app)
                self.probes.forget(app)
        for name, version in self.state.versions.items():
            if version.phase is Phase.PROBING and version.app in found:
                self.probes.begin(version.app, name, found[version.app].replicas)

    def _prepare(self, app: str, name: str) -> None:
        """Make the version's directory, and start its application."""
        try:
            draft = draft_directory(self.config.draft, self.files.models) if self.config.draft is not None else None
            self.applications.deploy(self._spec(app, name, self.source.directory(name, self.files.models), draft))
        except Exception as error:  # whatever it is, the version is refused for it
            log.exception("version %s cannot be started", name)
            self._unprepared[app] = str(error)

    def _spec(self, app: str, name: str, model: Path, draft: Path | None) -> ReplicaSpec:
        config, context = self.config, self.context
        resources = context.run.resources(context.attempt)
        return ReplicaSpec(
            app=app,
            version=name,
            model=str(model),
            engine=config.engine,
            engine_command=tuple(config.engine_command) if config.engine_command else None,
            slots=config.slots,
            threads=math.ceil(config.cpus) if config.cpus else None,
            gpus=math.ceil(config.gpus),
            context=config.context,
            draft=str(draft) if draft is not None else None,
            draft_tokens=config.draft_tokens,
            folder=str(self.files.replicas / f"{context.attempt:04d}" / app),
            load=str(self.files.load),
            logs=str(context.run.log_dir(context.attempt)),
            start_seconds=config.update.start_minutes * 60,
            drain_seconds=config.update.drain_seconds,
            own_address=resources.nodes.most > 1,
            token=self.token,
        )

    def _take_back(self) -> None:
        """Have the registry point to the version before one that was refused."""
        for name, version in self.state.versions.items():
            if version.phase is Phase.REFUSED and version.app not in self._rejected:
                self._rejected.add(version.app)
                done = self.source.take_back(name, version.cause, self._name)
                if done:
                    self.context.run.event("alias_taken_back", version=name, done=done)
                self._wanted_at = -math.inf

    def _publish(self, found: Mapping[str, Found]) -> None:
        replicas = {name: found[version.app].replicas for name, version in self.state.versions.items() if version.app in found}
        share = self.config.canary.share if self.config.canary is not None else 0.0
        models = {name: self._model(name) for name in self.state.versions}
        routes = routes_of(self.state, replicas, models, self.source.names, share, accepting=self._accepting())
        if routes != self._published:
            write_routes(self.local.routes, routes)
            write_routes(self.files.routes, routes)
            self._published = routes

    def _model(self, name: str) -> str:
        """The run and step, or the directory, of a version."""
        if name not in self._models:
            try:
                self._models[name] = self.source.ref(name)
            except RopewalkError:
                return ""
        return self._models[name]

    def _accepting(self) -> bool:
        """Whether new requests are answered: until the entry closes, or, where nothing is handed over, until a stop."""
        return not self.local.closing.exists() and (self.config.handover or not self.context.stop_requested())

    def _hopeless(self, now: float, wanted: Wanted) -> str:
        if self.state.stable is not None or wanted.stable is None:
            return ""
        version = self.state.versions.get(wanted.stable)
        if version is None or version.phase is not Phase.REFUSED or now - version.since < HOPELESS_SECONDS:
            return ""
        return f"{wanted.stable}: {version.cause}"


def give_up(local: LocalFiles, cause: str) -> None:
    """Tell the entry why there is nothing to serve."""
    write_json(local.failure, {"error": cause})

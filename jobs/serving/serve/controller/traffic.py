"""Traffic between versions: a pure function of wanted versions and observations, one step at a time.

A wanted version is loaded beside the serving one, must answer a probe, is tried as a canary if configured, and then takes over. A
version that fails on the way is refused and gets no (more) traffic.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ropewalk.jobs.serving.serve.config import ServeConfig
from ropewalk.jobs.serving.serve.controller.state import Canary, Phase, ServingState, Version
from ropewalk.jobs.serving.serve.models import Wanted

QUIET_SECONDS = 2.0  # maximum age of the gateway's counts
MIN_ERRORS = 3  # failures that can end a canary before it has had all its requests


@dataclass(frozen=True, kw_only=True)
class Observation:
    """Observed state of one version."""

    replicas: int = 0  # serving replicas
    failed: str = ""  # error while loading
    waits: str = ""  # reason for missing replicas
    probe: str | None = None  # error of the probe; "" if it passed; None if it has not finished
    running: int = 0  # running and queued requests
    requests: int = 0  # since the gateway started
    errors: int = 0


class TrafficController:
    """One decision step at a time `now` of the monotonic clock.

    Updates `state`, whose phases say which versions must run or be probed, and returns the events of the changes.
    """

    def __init__(self, config: ServeConfig, state: ServingState, now: float) -> None:
        self.config, self.state, self.now = config, state, now
        self._events: list[tuple[str, dict[str, Any]]] = []

    def step(self, wanted: Wanted, observed: Mapping[str, Observation]) -> list[tuple[str, dict[str, Any]]]:
        """Advance by one step and return the events."""
        self._admit(wanted)
        for name, version in list(self.state.versions.items()):
            self._watch(name, version, observed.get(name, Observation()))
        self._judge_canary(observed)
        self._choose(wanted, observed)
        self._retire(wanted, observed)
        return self._events

    # --- new versions

    def _admit(self, wanted: Wanted) -> None:
        for name in dict.fromkeys(filter(None, (wanted.stable, wanted.canary))):
            version = self.state.versions.get(name)
            if version is not None and version.phase is Phase.LEAVING:
                self._move(version, Phase.READY)  # still loaded
            elif version is None:
                self.state.applications += 1
                added = Version(app=f"{_application_name(name)}.{self.state.applications}", entered=self.now)
                self.state.versions[name] = added
                if name in wanted.barred:
                    added.barred = True
                    self._refuse(name, added, wanted.barred[name])
                else:
                    self._event("version_loading", version=name)
            elif version.barred and name not in wanted.barred:
                del self.state.versions[name]  # it has passed its gate since

    def _watch(self, name: str, version: Version, observed: Observation) -> None:
        """Advance a version that is loading or being probed."""
        if version.phase is Phase.LOADING:
            if observed.failed:
                self._refuse(name, version, f"loading failed: {observed.failed}")
            elif observed.replicas >= self.config.replicas.least:
                self._move(version, Phase.PROBING)
            elif self.now - version.entered > self.config.update.start_minutes * 60:
                waits = f": {observed.waits}" if observed.waits else ""
                self._refuse(name, version, f"not loaded within {self.config.update.start_minutes:g} minutes{waits}")
        elif version.phase is Phase.PROBING:
            if observed.probe:
                self._refuse(name, version, f"probe failed: {observed.probe}")
            elif observed.probe == "":
                self._move(version, Phase.READY)
                self._event("version_ready", version=name)

    # --- traffic

    def _judge_canary(self, observed: Mapping[str, Observation]) -> None:
        """Refuse a canary that fails too often; trust one that has answered enough requests."""
        canary, keys = self.state.canary, self.config.canary
        if canary is None or keys is None:
            return
        current = observed.get(canary.version, Observation())
        version = self.state.versions[canary.version]
        requests, errors = current.requests - canary.requests, current.errors - canary.errors
        if requests < 0 or errors < 0:  # the gateway was restarted
            canary.requests, canary.errors = current.requests, current.errors
            return
        enough = requests >= keys.requests or self.now - canary.started >= keys.minutes * 60
        too_many = errors > keys.max_error_rate * requests and (errors >= MIN_ERRORS or enough)
        if current.replicas == 0 and current.failed:
            self._refuse(canary.version, version, f"its replicas died during the canary: {current.failed}")
        elif too_many:
            limit = f"at most {keys.max_error_rate:.0%} may"
            self._refuse(canary.version, version, f"{errors} of its {requests} canary requests failed, {limit}")
        elif enough and not version.trusted:
            version.trusted = True
            self._event("canary_passed", version=canary.version, requests=requests, errors=errors)

    def _choose(self, wanted: Wanted, observed: Mapping[str, Observation]) -> None:
        """Give the traffic to the wanted version once it is ready and trusted; start and end canaries."""
        state, keys = self.state, self.config.canary
        target = wanted.stable
        version = state.versions.get(target) if target is not None else None
        if target is not None and version is not None and target != state.stable and version.phase is Phase.READY:
            if keys is None or state.stable is None or version.trusted:
                self._switch(target, version)
            elif state.canary is None or state.canary.version != target:
                self._try(target, observed, decides=True)
            else:
                state.canary.decides = True
        canary = state.canary
        if canary is not None and canary.version not in {wanted.stable, wanted.canary}:
            state.canary = None  # no longer wanted
            self._event("canary_ended", version=canary.version)
        candidate = wanted.canary
        if candidate is not None and keys is not None and state.canary is None and candidate not in {state.stable, wanted.stable}:
            candidate_version = state.versions.get(candidate)
            if candidate_version is not None and candidate_version.phase is Phase.READY and state.stable is not None:
                self._try(candidate, observed, decides=False)

    def _try(self, name: str, observed: Mapping[str, Observation], *, decides: bool) -> None:
        counts = observed.get(name, Observation())
        self.state.canary = Canary(
            version=name, started=self.now, requests=counts.requests, errors=counts.errors, decides=decides
        )
        assert self.config.canary is not None, "a canary exists only if configured"
        self._event("canary_started", version=name, share=self.config.canary.share)

    def _switch(self, name: str, version: Version) -> None:
        state = self.state
        before, state.stable, version.trusted = state.stable, name, True
        if state.canary is not None and state.canary.version == name:
            state.canary = None
        if before is not None:
            state.previous, state.previous_until = before, self.now + self.config.update.keep_previous_minutes * 60
        self._event("version_serves", version=name, before=before)

    # --- old versions

    def _retire(self, wanted: Wanted, observed: Mapping[str, Observation]) -> None:
        """Drain versions that are no longer needed, and remove drained ones."""
        state = self.state
        if state.previous is not None and (self.now >= state.previous_until or state.previous == state.stable):
            state.previous = None
        canary = state.canary.version if state.canary is not None else None
        needed = {state.stable, state.previous, canary, wanted.stable, wanted.canary}
        for name, version in list(state.versions.items()):
            if name in needed:
                continue
            if version.phase in {Phase.REFUSED, Phase.LOADING, Phase.PROBING}:
                del state.versions[name]  # it never had traffic; if wanted again, it is tried again
            elif version.phase is not Phase.LEAVING:
                self._move(version, Phase.LEAVING)
            elif self._drained(version, observed.get(name, Observation())):
                del state.versions[name]
                self._event("version_gone", version=name)

    def _drained(self, version: Version, observed: Observation) -> bool:
        seconds = self.now - version.entered
        return (observed.running == 0 and seconds >= QUIET_SECONDS) or seconds > self.config.update.drain_seconds

    def _refuse(self, name: str, version: Version, cause: str) -> None:
        version.cause = cause
        self._move(version, Phase.REFUSED)
        if self.state.canary is not None and self.state.canary.version == name:
            self.state.canary = None
        self._event("version_refused", version=name, cause=cause, serves=self.state.stable)

    def _move(self, version: Version, phase: Phase) -> None:
        version.phase, version.entered, version.since = phase, self.now, time.time()

    def _event(self, kind: str, **fields: Any) -> None:
        self._events.append((kind, fields))


def _application_name(name: str) -> str:
    """Return a version's name with only characters that Ray Serve allows in application names."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name)

"""Which version gets the traffic: a pure function of what is wanted and what is seen, one step at a time.

A wanted version is loaded beside the one that serves, must answer a question, is tried on a share of the traffic where that is
asked for, and only then takes over. One that fails on the way is refused: it never gets traffic, or gets no more.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ropewalk.jobs.serving.serve.config import ServeConfig
from ropewalk.jobs.serving.serve.controller.state import Canary, Phase, ServingState, Version
from ropewalk.jobs.serving.serve.models import Wanted

QUIET_SECONDS = 2.0  # the gateway's counts are that old at most
FEW_ERRORS = 3  # so many failures end a canary before it has had all its requests, if they are too large a share of them


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What is seen of one version."""

    replicas: int = 0  # that answer
    failed: str = ""  # why it does not load
    waits: str = ""  # what its replicas wait for
    probed: str | None = None  # "" it has answered; words: how it failed; None: it has not been asked yet
    running: int = 0  # requests under way
    requests: int = 0  # since the gateway counts
    errors: int = 0


class Rollout:
    """One step of the decision. It changes `state`, whose versions say what has to run and what has to be asked, and returns
    the events that tell of the change.
    """

    def __init__(self, config: ServeConfig, state: ServingState, now: float) -> None:
        self.config, self.state, self.now = config, state, now
        self._events: list[tuple[str, dict[str, Any]]] = []

    def step(self, wanted: Wanted, seen: Mapping[str, Seen]) -> list[tuple[str, dict[str, Any]]]:
        """Go on by one step; returns the events."""
        self._admit(wanted)
        for name, version in list(self.state.versions.items()):
            self._watch(name, version, seen.get(name, Seen()))
        self._judge_canary(seen)
        self._choose(wanted, seen)
        self._retire(wanted, seen)
        return self._events

    # --- on the way in

    def _admit(self, wanted: Wanted) -> None:
        """Begin to load the versions that are wanted."""
        for name in dict.fromkeys(filter(None, (wanted.stable, wanted.canary))):
            known = self.state.versions.get(name)
            if known is not None and known.phase is Phase.LEAVING:
                self._move(known, Phase.READY)  # it is still loaded
            elif known is None:
                self.state.applications += 1
                made = Version(app=f"{_plain(name)}.{self.state.applications}", since=self.now)
                self.state.versions[name] = made
                if name in wanted.barred:
                    made.barred = True
                    self._refuse(name, made, wanted.barred[name])
                else:
                    self._event("version_loading", version=name)
            elif known.barred and name not in wanted.barred:
                del self.state.versions[name]  # its gate has passed meanwhile

    def _watch(self, name: str, version: Version, seen: Seen) -> None:
        """See whether a version that is on its way in has loaded and answers."""
        if version.phase is Phase.LOADING:
            if seen.failed:
                self._refuse(name, version, f"it did not load: {seen.failed}")
            elif seen.replicas >= self.config.replicas.least:
                self._move(version, Phase.PROBING)
            elif self.now - version.since > self.config.update.start_minutes * 60:
                waits = f": {seen.waits}" if seen.waits else ""
                self._refuse(name, version, f"it did not load within {self.config.update.start_minutes:g} minutes{waits}")
        elif version.phase is Phase.PROBING:
            if seen.probed:
                self._refuse(name, version, f"it did not answer: {seen.probed}")
            elif seen.probed == "":
                self._move(version, Phase.READY)
                self._event("version_ready", version=name)

    # --- who gets the traffic

    def _judge_canary(self, seen: Mapping[str, Seen]) -> None:
        """Refuse a canary that fails too often; trust one that has answered enough."""
        canary, keys = self.state.canary, self.config.canary
        if canary is None or keys is None:
            return
        found = seen.get(canary.version, Seen())
        version = self.state.versions[canary.version]
        requests, errors = found.requests - canary.requests, found.errors - canary.errors
        if requests < 0 or errors < 0:  # the gateway counts from the beginning again
            canary.requests, canary.errors = found.requests, found.errors
            return
        enough = requests >= keys.requests or self.now - canary.since >= keys.minutes * 60
        too_many = errors > keys.max_error_rate * requests and (errors >= FEW_ERRORS or enough)
        if found.replicas == 0 and found.failed:
            self._refuse(canary.version, version, f"its replicas died as a canary: {found.failed}")
        elif too_many:
            limit = f"at most {keys.max_error_rate:.0%} may"
            self._refuse(canary.version, version, f"{errors} of its {requests} requests failed as a canary, {limit}")
        elif enough and not version.trusted:
            version.trusted = True
            self._event("canary_passed", version=canary.version, requests=requests, errors=errors)

    def _choose(self, wanted: Wanted, seen: Mapping[str, Seen]) -> None:
        """Give the traffic to the version that is wanted, once it may have it."""
        state, keys = self.state, self.config.canary
        target = wanted.stable
        version = state.versions.get(target) if target is not None else None
        if target is not None and version is not None and target != state.stable and version.phase is Phase.READY:
            if keys is None or state.stable is None or version.trusted:
                self._switch(target, version)
            elif state.canary is None or state.canary.version != target:
                self._try(target, seen, decides=True)
            else:
                state.canary.decides = True
        canary = state.canary
        if canary is not None and canary.version not in {wanted.stable, wanted.canary}:
            state.canary = None  # nobody wants it any more
            self._event("canary_ended", version=canary.version)
        named = wanted.canary
        if named is not None and keys is not None and state.canary is None and named not in {state.stable, wanted.stable}:
            other = state.versions.get(named)
            if other is not None and other.phase is Phase.READY and state.stable is not None:
                self._try(named, seen, decides=False)

    def _try(self, name: str, seen: Mapping[str, Seen], *, decides: bool) -> None:
        counts = seen.get(name, Seen())
        self.state.canary = Canary(version=name, since=self.now, requests=counts.requests, errors=counts.errors, decides=decides)
        assert self.config.canary is not None, "there is a canary only where one is asked for"
        self._event("canary_started", version=name, share=self.config.canary.share)

    def _switch(self, name: str, version: Version) -> None:
        state = self.state
        before, state.stable, version.trusted = state.stable, name, True
        if state.canary is not None and state.canary.version == name:
            state.canary = None
        if before is not None:
            state.previous, state.previous_until = before, self.now + self.config.update.keep_previous_minutes * 60
        self._event("version_serves", version=name, before=before)

    # --- on the way out

    def _retire(self, wanted: Wanted, seen: Mapping[str, Seen]) -> None:
        """Drain versions that nobody needs any more, and delete those that have drained."""
        state = self.state
        if state.previous is not None and (self.now >= state.previous_until or state.previous == state.stable):
            state.previous = None
        canary = state.canary.version if state.canary is not None else None
        needed = {state.stable, state.previous, canary, wanted.stable, wanted.canary}
        for name, version in list(state.versions.items()):
            if name in needed:
                continue
            if version.phase in {Phase.REFUSED, Phase.LOADING, Phase.PROBING}:
                del state.versions[name]  # it never had traffic; named again, it is tried again
            elif version.phase is not Phase.LEAVING:
                self._move(version, Phase.LEAVING)
            elif self._drained(version, seen.get(name, Seen())):
                del state.versions[name]
                self._event("version_gone", version=name)

    def _drained(self, version: Version, seen: Seen) -> bool:
        seconds = self.now - version.since
        return (seen.running == 0 and seconds >= QUIET_SECONDS) or seconds > self.config.update.drain_seconds

    def _refuse(self, name: str, version: Version, cause: str) -> None:
        version.cause = cause
        self._move(version, Phase.REFUSED)
        if self.state.canary is not None and self.state.canary.version == name:
            self.state.canary = None
        self._event("version_refused", version=name, cause=cause, serves=self.state.stable)

    def _move(self, version: Version, phase: Phase) -> None:
        version.phase, version.since = phase, self.now

    def _event(self, kind: str, **fields: Any) -> None:
        self._events.append((kind, fields))


def _plain(name: str) -> str:
    """A version's name with the characters that Ray Serve takes in the name of an application."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name)

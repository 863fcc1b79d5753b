"""Versions a serving run should serve: those an alias of the registry points to, or one fixed model."""

import logging
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ropewalk.cluster.errors import ConfigError, RopewalkError
from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.models.registry.deployments import State, record_rollout
from ropewalk.jobs.models.registry.promote import rollback
from ropewalk.jobs.models.registry.weights import check_weights, newest_step
from ropewalk.jobs.runs.models.find_model import find_checkpoint
from ropewalk.jobs.runs.models.gates import newest_gates, require_passed
from ropewalk.jobs.runs.models.model_versions import (
    PRODUCTION,
    RegisteredModel,
    Version,
    exported_directory,
    find_version,
    registered_models,
)
from ropewalk.jobs.training.loop.weights.content_hash import hash_of_model

log = logging.getLogger(__name__)

DEFAULT_ALIAS = "default"  # API name of a fixed run or directory
EXPORT_SECONDS = 1800
GATE_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Versions that should be served now."""

    stable: str | None  # version of the served alias
    canary: str | None = None  # version of the canary alias
    barred: Mapping[str, str] = field(default_factory=dict)  # versions refused by their gate, with the reason


class FixedModel:
    """One model: a run's checkpoint or a directory."""

    def __init__(self, ref: str, root: Path | None = None) -> None:
        checkpoint = find_checkpoint(ref, root)
        self._place, self._step = checkpoint.source, checkpoint.step
        if isinstance(self._place, RunDir):
            self._step = self._step if self._step is not None else newest_step(self._place)
            self.version = f"{self._place.id}@{self._step}"
        else:
            self.version = self._place.name or "model"
        self.alias = DEFAULT_ALIAS  # API name of the serving version
        self.names: tuple[str, ...] = ()  # more API names of it

    @cached_property
    def _weights(self) -> str:
        return hash_of_model(self._place, self._step)

    def wanted(self, canary: str | None, *, gated: bool) -> Wanted:
        barred = {}
        if gated and (reason := gate_refusal(self._place, self._step, self._weights, None)):
            barred[self.version] = reason
        return Wanted(stable=self.version, barred=barred)

    def ref(self, version: str) -> str:
        return str(self._place) if isinstance(self._place, Path) else self.version

    def directory(self, version: str, folder: Path) -> Path:
        """Return the directory, or export the checkpoint into `folder`."""
        if isinstance(self._place, Path):
            if not (self._place / "config.json").is_file():
                raise ConfigError(f"{self._place} is no longer a Hugging Face directory (no config.json)")
            return self._place
        target = folder / re.sub(r"[^\w.-]", "-", self.version)
        if not (target / "config.json").is_file():
            _run(
                ["ropewalk.jobs.models.cards.export", str(self._place.path), str(target), "--step", str(self._step)], self.version
            )
        return target

    def report(self, version: str, state: State, cause: str, by: str) -> None:
        """Do nothing: the model is not in the registry."""

    def revert_aliases(self, version: str, cause: str, by: str) -> str:
        """Do nothing: there is no other version."""
        return ""


class WatchedAlias:
    """An alias of the registry, which can change its version."""

    def __init__(self, model: RegisteredModel, alias: str) -> None:
        self.model, self.alias = model, alias
        self._refusals: dict[str, tuple[str, float]] = {}  # by version: refusal by its gate, cached until a monotonic time
        self.names: tuple[str, ...] = (model.name, f"{model.name}@{alias}") if alias == PRODUCTION else (f"{model.name}@{alias}",)

    def wanted(self, canary: str | None, *, gated: bool) -> Wanted:
        """Return the current versions of the served alias and of the canary alias."""
        stable = self.model.current(self.alias)
        candidate = self.model.current(canary) if canary is not None and canary != self.alias else None
        if candidate is not None and stable is not None and candidate.number == stable.number:
            candidate = None
        barred = {}
        for version in (each for each in (stable, candidate) if gated and each is not None):
            if reason := self._gate_refusal(version):
                barred[version.id] = reason
        return Wanted(stable=stable.id if stable else None, canary=candidate.id if candidate else None, barred=barred)

    def _gate_refusal(self, version: Version) -> str:
        """Return the cached reason the gate refuses a version: computing it reads every run under the root."""
        reason, until = self._refusals.get(version.id, ("", 0.0))
        if time.monotonic() >= until:
            reason = gate_refusal(*_model_of(version), version.weights, version.root)
            self._refusals[version.id] = reason, time.monotonic() + GATE_SECONDS
        return reason

    def ref(self, version: str) -> str:
        return self._version(version).ref

    def directory(self, version: str, folder: Path) -> Path:
        """Return the directory of NAME@NUMBER, which the registry shares between serving runs; its weights are compared with the
        registered ones. Raises ConfigError.
        """
        entry = self._version(version)
        if exported_directory(entry) is not None:
            check_weights(entry)
        else:
            _run(["ropewalk.jobs.models.registry.directory", version, str(self.model.root)], version)
        directory = exported_directory(entry)
        if directory is None:
            raise ConfigError(f"{version}: {entry.ref} is no longer a model directory (no config.json)")
        return directory

    def report(self, version: str, state: State, cause: str, by: str) -> None:
        """Write the state into the registry, for `ropewalk models`."""
        try:
            record_rollout(self.model.root, version, self.alias, state, cause, by=by)
        except (RopewalkError, OSError) as error:  # not fatal: the run's own files have the state
            log.warning("the state of %s was not written to the registry: %s", version, error)

    def revert_aliases(self, version: str, cause: str, by: str) -> str:
        """Point each alias of the version back to its previous version, whose weights are compared before it serves again.

        Raises OSError.
        """
        changes, number = [], int(version.rpartition("@")[2])
        for alias in self.model.alias_names():
            try:
                current = self.model.current(alias)
                if current is None or current.number != number:
                    continue
                move = rollback(
                    alias, model=self.model.name, root=self.model.root, only=number, by=by, reason=cause, checked=True
                )
            except RopewalkError as error:
                changes.append(f"{alias} still points to it: {error}")
            else:
                changes.append(f"{alias} points to {move.version_id or 'nothing'} again")
        return "; ".join(changes)

    def _version(self, version: str) -> Version:
        return self.model.version(int(version.rpartition("@")[2]))


Source = FixedModel | WatchedAlias  # of the versions to serve


def find_source(ref: str, root: Path | None = None, *, serves: bool = False) -> Source:
    """Return the source that `model` names. `serves`: a version of it serves already, so the alias need not be readable.

    Raises ConfigError if it is not in the registry, a run or a directory.
    """
    name, _, word = ref.partition("@")
    if not Path(ref).expanduser().exists() and not word.isdigit():
        for model in registered_models(root):
            if name == model.name and word in model.alias_names():
                if not serves:
                    find_version(ref, root)  # raises if the alias points to nothing
                return WatchedAlias(model, word)
        if (version := find_version(ref, root)) is not None:
            return WatchedAlias(RegisteredModel(version.root, version.model), PRODUCTION if ref == version.model else ref)
    return FixedModel(ref, root)


def lasting_name(ref: str) -> str:
    """Return a name of a model that stays valid (NAME@ALIAS, RUN@STEP, a path); unknown names are returned unchanged."""
    try:
        source = find_source(ref)
        return f"{source.model.name}@{source.alias}" if isinstance(source, WatchedAlias) else find_checkpoint(ref).ref
    except ConfigError:
        return ref


def gate_refusal(model: RunDir | Path, step: int | None, weights: str, root: Path | None) -> str:
    """Return the reason a model's gate refuses it, or an empty string if it passed."""
    try:
        require_passed(model, step, weights, root)
    except ConfigError as error:
        return f"its gate refused it: {error}" if newest_gates(weights, root) else f"it has not passed a gate: {error}"
    return ""


def _model_of(version: Version) -> tuple[RunDir | Path, int | None]:
    return (Path(version.path), None) if version.path else (RunDir(version.root / str(version.run)), version.step)


def _run(command: Sequence[str], what: str) -> None:
    """Run a module of this program as a process, since it needs torch. Raises ConfigError with its error message."""
    completed = subprocess.run(module_command(*command), capture_output=True, text=True, timeout=EXPORT_SECONDS, check=False)
    if completed.returncode:
        raise ConfigError(f"{what} cannot be exported: {(completed.stderr.strip() or completed.stdout.strip())[-500:]}")

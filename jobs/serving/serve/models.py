"""Which versions a serving run is to serve: those that an alias of the registry points to, or one model for good."""

import logging
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ropewalk.cluster.errors import ConfigError, RopewalkError
from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.models.registry.deployments import State, record_rollout
from ropewalk.jobs.models.registry.promote import rollback
from ropewalk.jobs.models.registry.weights import newest_step
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

log = logging.getLogger(__name__)

DEFAULT_ALIAS = "default"  # of a run or a directory that is served
EXPORT_SECONDS = 1800
GATE_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Versions that the registry asks this run to serve."""

    stable: str | None  # the version that the served alias points to
    canary: str | None = None  # the version that is to have a share, for as long as it is named
    barred: Mapping[str, str] = field(default_factory=dict)  # versions that may not be loaded, each with the reason


class Source(Protocol):
    """Where versions come from."""

    alias: str  # the API's name for whatever serves
    names: tuple[str, ...]  # what else the API calls it

    def wanted(self, canary: str | None, *, gated: bool) -> Wanted:
        """What is to be served now; `canary` is the alias of versions that are to have a share, None: there is none."""
        ...

    def ref(self, version: str) -> str:
        """RUN@STEP or the directory of a version. Raises ConfigError."""
        ...

    def directory(self, version: str, folder: Path) -> Path:
        """The Hugging Face directory of a version; what must be exported first may go to `folder`. Raises ConfigError."""
        ...

    def tell(self, version: str, state: State, cause: str, by: str) -> None:
        """Tell the registry what became of a version."""
        ...

    def take_back(self, version: str, cause: str, by: str) -> str:
        """Make aliases point to what they pointed to before a version that was refused; what was done, in words."""
        ...


class Fixed:
    """One model: a run's checkpoint or a directory."""

    def __init__(self, ref: str, root: Path | None = None) -> None:
        found = find_checkpoint(ref, root)
        self._place, self._step = found.place, found.step
        if isinstance(self._place, RunDir):
            self._step = self._step if self._step is not None else newest_step(self._place)
            self.version = f"{self._place.id}@{self._step}"
        else:
            self.version = self._place.name or "model"
        self.alias = DEFAULT_ALIAS
        self.names: tuple[str, ...] = ()

    def wanted(self, canary: str | None, *, gated: bool) -> Wanted:
        """The model, always."""
        barred = {}
        if gated and (why := why_barred(self._place, self._step, None)):
            barred[self.version] = why
        return Wanted(stable=self.version, barred=barred)

    def ref(self, version: str) -> str:
        """The run and its step, or the directory."""
        return str(self._place) if isinstance(self._place, Path) else self.version

    def directory(self, version: str, folder: Path) -> Path:
        """The directory itself, or the checkpoint's, exported into the serving run's folder."""
        if isinstance(self._place, Path):
            if not (self._place / "config.json").is_file():
                raise ConfigError(f"{self._place}: is no Hugging Face directory any more (no config.json)")
            return self._place
        target = folder / re.sub(r"[^\w.-]", "-", self.version)
        if not (target / "config.json").is_file():
            _run(
                ["ropewalk.jobs.models.cards.export", str(self._place.path), str(target), "--step", str(self._step)], self.version
            )
        return target

    def tell(self, version: str, state: State, cause: str, by: str) -> None:
        """Nothing: no registry knows the model."""

    def take_back(self, version: str, cause: str, by: str) -> str:
        """Nothing: there is no other version."""
        return ""


class Watched:
    """An alias of the registry: what it points to changes."""

    def __init__(self, model: RegisteredModel, alias: str) -> None:
        self.model, self.alias = model, alias
        self._judged: dict[str, tuple[str, float]] = {}  # by version: why its gates keep it out, and until when that is believed
        self.names: tuple[str, ...] = (model.name, f"{model.name}@{alias}") if alias == PRODUCTION else (f"{model.name}@{alias}",)

    def wanted(self, canary: str | None, *, gated: bool) -> Wanted:
        """What the alias, and the alias of canaries, point to now."""
        stable = self.model.current(self.alias)
        other = self.model.current(canary) if canary is not None and canary != self.alias else None
        if other is not None and stable is not None and other.number == stable.number:
            other = None
        barred = {}
        for version in (each for each in (stable, other) if gated and each is not None):
            if why := self._why_barred(version):
                barred[version.id] = why
        return Wanted(stable=stable.id if stable else None, canary=other.id if other else None, barred=barred)

    def _why_barred(self, version: Version) -> str:
        """Why its gates keep a version from traffic; to ask means to look at every run under the root."""
        why, until = self._judged.get(version.id, ("", 0.0))
        if time.monotonic() >= until:
            why = why_barred(*_place_of(version), version.root)
            self._judged[version.id] = why, time.monotonic() + GATE_SECONDS
        return why

    def ref(self, version: str) -> str:
        """RUN@STEP or the directory of NAME@NUMBER. Raises ConfigError."""
        return self._version(version).ref

    def directory(self, version: str, folder: Path) -> Path:
        """The directory of NAME@NUMBER, which the registry keeps for all who serve it. Raises ConfigError."""
        found = self._version(version)
        if exported_directory(found) is None:
            _run(["ropewalk.jobs.models.registry.directory", version, str(self.model.root)], version)
        directory = exported_directory(found)
        if directory is None:
            raise ConfigError(f"{version}: {found.ref} is no model's directory any more (no config.json)")
        return directory

    def tell(self, version: str, state: State, cause: str, by: str) -> None:
        """Write it into the registry, for `ropewalk models`."""
        try:
            record_rollout(self.model.root, version, self.alias, state, cause, by=by)
        except (RopewalkError, OSError) as error:  # the registry is a mirror of it; this run has it in its own files
            log.warning("the registry was not told of %s: %s", version, error)

    def take_back(self, version: str, cause: str, by: str) -> str:
        """Make each alias that points to the version point to the one before it."""
        done = []
        for alias, found in self.model.aliases().items():
            if found.id != version:
                continue
            try:
                move = rollback(alias, model=self.model.name, root=self.model.root, only=found.number, by=by, reason=cause)
            except RopewalkError as error:
                done.append(f"{alias} still points to it: {error}")
            else:
                done.append(f"{alias} points to {move.version_id or 'nothing'} again")
        return "; ".join(done)

    def _version(self, version: str) -> Version:
        return self.model.version(int(version.rpartition("@")[2]))


def find_source(ref: str, root: Path | None = None) -> Fixed | Watched:
    """What a configuration's `model` means. Raises ConfigError if it is neither in the registry, nor a run, nor a directory."""
    name, _, word = ref.partition("@")
    if not Path(ref).expanduser().exists() and not word.isdigit():
        for model in registered_models(root):
            if name == model.name and word in model.alias_names():
                find_version(ref, root)  # raises where it points to nothing
                return Watched(model, word)
        if (version := find_version(ref, root)) is not None:
            return Watched(RegisteredModel(version.root, version.model), PRODUCTION if ref == version.model else ref)
    return Fixed(ref, root)


def lasting_name(ref: str) -> str:
    """A model's name that means the same tomorrow, as far as it is known here; what is not found stays as it is."""
    try:
        source = find_source(ref)
        return f"{source.model.name}@{source.alias}" if isinstance(source, Watched) else find_checkpoint(ref).ref
    except ConfigError:
        return ref


def why_barred(place: RunDir | Path, step: int | None, root: Path | None) -> str:
    """Why a model's gates keep it from traffic; empty: they have passed."""
    try:
        require_passed(place, step, root)
    except ConfigError as error:
        return f"its gate refused it: {error}" if newest_gates(place, step, root) else f"no gate has judged it: {error}"
    return ""


def _place_of(version: Version) -> tuple[RunDir | Path, int | None]:
    return (Path(version.path), None) if version.path else (RunDir(version.root / str(version.run)), version.step)


def _run(words: Sequence[str], what: str) -> None:
    """Run a module of this program in a process of its own: it needs torch. Raises ConfigError with its words."""
    made = subprocess.run(module_command(*words), capture_output=True, text=True, timeout=EXPORT_SECONDS, check=False)
    if made.returncode:
        raise ConfigError(f"{what} cannot be exported: {(made.stderr.strip() or made.stdout.strip())[-500:]}")

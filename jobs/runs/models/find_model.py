"""Find the model that a user names: a run that trains one, a Hugging Face directory, or a version or alias of the registry.

Job files are read and completed with it: the registry and the states of runs are imported where they are asked.
"""

import re
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import AfterValidator

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir

_AT_STEP = re.compile(r"(.+)@(\d+)")


class FoundModel(NamedTuple):
    """Where a model lies: a run, or a Hugging Face directory; and which checkpoint of the run."""

    place: RunDir | Path
    step: int | None  # None: the newest complete one, or a directory

    @property
    def ref(self) -> str:
        """What names it tomorrow too, wherever the runs are seen: RUN, RUN@STEP or the directory."""
        if isinstance(self.place, Path):
            return str(self.place)
        return self.place.id if self.step is None else f"{self.place.id}@{self.step}"


def find_model(ref: str, root: Path | None = None) -> RunDir | Path:
    """The run or the Hugging Face directory that a user names. Raises ConfigError if it is neither."""
    return find_checkpoint(ref, root).place


def find_checkpoint(ref: str, root: Path | None = None) -> FoundModel:
    """The model that a user names: a directory, a run (id, its beginning, path, `latest`), RUN@STEP, an alias such as
    `production`, NAME@ALIAS or NAME@NUMBER of the registry. Raises ConfigError if it is none of them.
    """
    from ropewalk.jobs.runs.models.model_versions import find_version

    path = Path(ref).expanduser()
    if (path / "config.json").is_file():
        return FoundModel(path.absolute(), None)
    if not (path / "run.yaml").is_file() and (version := find_version(ref, root)) is not None:
        return _of_version(version.path, version.run, version.step, version.root)
    at_step = _AT_STEP.fullmatch(ref)
    try:
        if at_step:
            return FoundModel(_run(at_step[1], root), int(at_step[2]))
        return FoundModel(_latest(root) if ref == "latest" else _run(ref, root), None)
    except ConfigError as error:
        words = "neither a Hugging Face directory (no config.json), nor an alias of the registry, nor a run"
        raise ConfigError(f"model: {ref!r} is {words}: {error}") from None


def _run(ref: str, root: Path | None) -> RunDir:
    """The run under `root`; without a root, or where it is not there, the one under another root that this machine sees."""
    from ropewalk.jobs.runs.show.status import find_run, roots

    if root is None:
        return find_run(ref)
    try:
        return RunDir.find(ref, root)
    except ConfigError:
        if Path(ref).name == ref:
            for place in roots():
                if (place / ref / "run.yaml").is_file():
                    return RunDir(place / ref)
        raise


def _of_version(path: str | None, run: str | None, step: int | None, root: Path) -> FoundModel:
    if path is not None:
        return FoundModel(Path(path), None)
    return FoundModel(RunDir(root / str(run)), step)


def names_model(ref: str, model: RunDir | Path) -> bool:
    """Whether a job that has `ref` as its model means this run, whatever its checkpoint, or this directory."""
    if isinstance(model, Path):
        return ref == str(model)
    at_step = _AT_STEP.fullmatch(ref)
    return (at_step[1] if at_step else ref) in {model.id, str(model.path)}


def check_model_run(key: str, ref: str) -> None:
    """Raise ConfigError unless `key` names a run that trains a model, by its full id or its directory."""
    from ropewalk.jobs.runs.show.status import find_run

    found = find_run(ref)
    if ref not in {found.id, str(found.path)}:
        raise ConfigError(f"{key}: {ref!r} may mean another run tomorrow; give the id: {found.id}")
    if not _trains(found):
        raise ConfigError(f"{key}: {found.id} is a {found.record.get('job')} run, which has no model; name a run that trains one")


def _trains(run: RunDir) -> bool:
    return run.model_record.is_file() or "steps" in (run.record.get("config") or {})


def _latest(root: Path | None) -> RunDir:
    """The newest run that trains a model; an evaluation is a run too, and has none."""
    from ropewalk.jobs.runs.show.status import all_runs, newest

    if found := newest(all_runs() if root is None else RunDir.all(root), _trains):
        return found
    raise ConfigError("no run that trains a model; `ropewalk ps --all` lists all runs")


def _resolve(ref: str) -> str:
    """Resolve `latest`, aliases and the beginning of an id at submission; what is not found stays as it is, and preflight
    says so.
    """
    try:
        found = find_checkpoint(ref)
    except ConfigError:
        return ref
    if isinstance(found.place, RunDir) and (Path(ref) / "run.yaml").is_file():
        return str(found.place.path)
    return found.ref


# A run, RUN@STEP or a Hugging Face directory, as an id or an absolute path; an alias is what it points to at submission.
ModelRef = Annotated[str, AfterValidator(_resolve)]

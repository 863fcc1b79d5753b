"""Search for a model by reference: a training run, a Hugging Face directory, or a version or alias of the registry.

Configurations and shell completion import this module, so it imports the registry and run states only inside functions.
"""

import re
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import AfterValidator

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.input_paths import Fetched
from ropewalk.cluster.run.directory import RunDir

_AT_STEP = re.compile(r"(.+)@(\d+)")


class FoundModel(NamedTuple):
    """Location of a model: a run with a checkpoint's step, or a Hugging Face directory."""

    source: RunDir | Path
    step: int | None  # None: the newest complete checkpoint, or a directory

    @property
    def ref(self) -> str:
        """Permanent reference, valid on every machine that sees the runs: RUN, RUN@STEP or the directory."""
        if isinstance(self.source, Path):
            return str(self.source)
        return self.source.id if self.step is None else f"{self.source.id}@{self.step}"


def find_model(ref: str, root: Path | None = None) -> RunDir | Path:
    """Find the run or Hugging Face directory of a model. Raises ConfigError."""
    return find_checkpoint(ref, root).source


def find_checkpoint(ref: str, root: Path | None = None) -> FoundModel:
    """Find a model by a directory, a run (id, prefix of an id, path, `latest`), RUN@STEP, an alias such as `production`,
    NAME@ALIAS or NAME@NUMBER of the registry. Raises ConfigError.
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
        problem = "neither a Hugging Face directory (no config.json), nor an alias of the registry, nor a run"
        raise ConfigError(f"model: {ref!r} is {problem}: {error}") from None


def _run(ref: str, root: Path | None) -> RunDir:
    """Find a run under `root`, or under any root if it is not there or `root` is None."""
    from ropewalk.jobs.runs.show.status import find_run, roots

    if root is None:
        return find_run(ref)
    try:
        return RunDir.find(ref, root)
    except ConfigError:
        if Path(ref).name == ref:
            for folder in roots():
                if (folder / ref / "run.yaml").is_file():
                    return RunDir(folder / ref)
        raise


def _of_version(path: str | None, run: str | None, step: int | None, root: Path) -> FoundModel:
    if path is not None:
        return FoundModel(Path(path), None)
    return FoundModel(RunDir(root / str(run)), step)


def names_model(ref: str, model: RunDir | Path) -> bool:
    """Return True if the reference `ref` in a job's configuration means this run (any checkpoint) or directory."""
    if isinstance(model, Path):
        return ref == str(model)
    at_step = _AT_STEP.fullmatch(ref)
    return (at_step[1] if at_step else ref) in {model.id, str(model.path)}


def check_model_run(key: str, ref: str) -> None:
    """Raise ConfigError unless `key` names a run that trains a model, by its full id or its directory."""
    from ropewalk.jobs.runs.show.status import find_run

    run = find_run(ref)
    if ref not in {run.id, str(run.path)}:
        raise ConfigError(f"{key}: {ref!r} may mean another run later; use the full id: {run.id}")
    if not _trains(run):
        raise ConfigError(f"{key}: {run.id} is a {run.record.get('job')} run, which has no model; name a run that trains one")


def _trains(run: RunDir) -> bool:
    return run.model_record.is_file() or "steps" in (run.record.get("config") or {})


def _latest(root: Path | None) -> RunDir:
    """Return the newest run that trains a model; other runs, such as evaluations, have none."""
    from ropewalk.jobs.runs.show.status import newest, newest_first

    if run := newest(newest_first() if root is None else RunDir.newest_first(root), _trains):
        return run
    raise ConfigError("no run that trains a model; `ropewalk ps --all` lists all runs")


def _resolve(ref: str) -> str:
    """Resolve `latest`, aliases and prefixes of ids at submission; unknown references are left to preflight."""
    try:
        model = find_checkpoint(ref)
    except ConfigError:
        return ref
    if isinstance(model.source, RunDir) and (Path(ref) / "run.yaml").is_file():
        return str(model.source.path)
    return model.ref


# A run, RUN@STEP or a Hugging Face directory, as an id or an absolute path; aliases are resolved at submission.
ModelRef = Annotated[str, AfterValidator(_resolve), Fetched("model")]

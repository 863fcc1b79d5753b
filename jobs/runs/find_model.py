"""Find the model that a user names: a run that trains one, or a Hugging Face directory."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from cluster.errors import ConfigError
from cluster.run.directory import RunDir
from jobs.runs.status import find_run


def find_model(ref: str, root: Path | None = None) -> RunDir | Path:
    """The run or the Hugging Face directory that a user names. Raises ConfigError if it is neither."""
    path = Path(ref).expanduser()
    if (path / "config.json").is_file():
        return path.absolute()
    try:
        return _latest(root) if ref == "latest" else RunDir.find(ref, root)
    except ConfigError as error:
        raise ConfigError(f"model: {ref!r} is neither a Hugging Face directory (no config.json) nor a run: {error}") from None


def check_model_run(key: str, ref: str) -> None:
    """Raise ConfigError unless `key` names a run that trains a model, by its full id or its directory."""
    found = find_run(ref)
    if ref not in {found.id, str(found.path)}:
        raise ConfigError(f"{key}: {ref!r} may mean another run tomorrow; give the id: {found.id}")
    if not _trains(found):
        raise ConfigError(f"{key}: {found.id} is a {found.record.get('job')} run, which has no model; name a run that trains one")


def _trains(run: RunDir) -> bool:
    return run.model_record.is_file() or "steps" in (run.record.get("config") or {})


def _latest(root: Path | None) -> RunDir:
    """The newest run that trains a model; an evaluation is a run too, and has none."""
    for run in reversed(RunDir.all(root)):
        if _trains(run):
            return run
    raise ConfigError("no run that trains a model; `ropewalk ps --all` lists all runs")


def _resolve(ref: str) -> str:
    """Resolve `latest` and the beginning of an id at submission; what is not found stays as it is, and preflight says so."""
    try:
        found = find_model(ref)
    except ConfigError:
        return ref
    if isinstance(found, Path):
        return str(found)
    return str(found.path) if (Path(ref) / "run.yaml").is_file() else found.id


# A run or a Hugging Face directory, as an id or an absolute path.
ModelRef = Annotated[str, AfterValidator(_resolve)]

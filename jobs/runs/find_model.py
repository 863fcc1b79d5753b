"""Which model the word of a user names: a run that trains one, or a Hugging Face directory."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from cluster.errors import ConfigError
from cluster.run.directory import RunDir
from jobs.runs.status import find_run


def find_model(word: str, root: Path | None = None) -> RunDir | Path:
    """The run or the Hugging Face directory that a word names. Raises ConfigError where it is neither."""
    path = Path(word).expanduser()
    if (path / "config.json").is_file():
        return path.absolute()
    try:
        return _latest(root) if word == "latest" else RunDir.find(word, root)
    except ConfigError as error:
        raise ConfigError(f"model: {word!r} is neither a Hugging Face directory (no config.json) nor a run: {error}") from None


def check_model_run(key: str, word: str) -> None:
    """Raise ConfigError unless `key` names a run that trains a model, by its full id or its directory."""
    found = find_run(word)
    if word not in {found.id, str(found.path)}:
        raise ConfigError(f"{key}: {word!r} may mean another run tomorrow; give the id: {found.id}")
    if not _trains(found):
        raise ConfigError(f"{key}: {found.id} is a {found.record.get('job')} run, which has no model; name a run that trains one")


def _trains(run: RunDir) -> bool:
    return run.model_record.is_file() or "steps" in (run.record.get("config") or {})


def _latest(root: Path | None) -> RunDir:
    """The newest run that trains; the evaluation itself is a run too."""
    for run in reversed(RunDir.all(root)):
        if _trains(run):
            return run
    raise ConfigError("no run that trains a model; `ropewalk ps --all` lists all runs")


def _settle(word: str) -> str:
    """What `latest` or the beginning of an id means is settled at submission; preflight names what is not found."""
    try:
        found = find_model(word)
    except ConfigError:
        return word
    if isinstance(found, Path):
        return str(found)
    return str(found.path) if (Path(word) / "run.yaml").is_file() else found.id


# A run or a Hugging Face directory, as an id or an absolute path.
ModelWord = Annotated[str, AfterValidator(_settle)]

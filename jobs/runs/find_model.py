"""Which model an evaluation means."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from cluster.errors import ConfigError
from cluster.run.directory import RunDir


def find_model(word: str, root: Path | None = None) -> RunDir | Path:
    """A run, or a Hugging Face directory. Raises ConfigError where it is neither."""
    path = Path(word).expanduser()
    if (path / "config.json").is_file():
        return path.absolute()
    try:
        return _latest(root) if word == "latest" else RunDir.find(word, root)
    except ConfigError as error:
        raise ConfigError(f"model: {word!r} is neither a Hugging Face directory (no config.json) nor a run: {error}") from None


def _latest(root: Path | None) -> RunDir:
    """The newest run that trains; the evaluation itself is a run too."""
    for run in reversed(RunDir.all(root)):
        if "steps" in (run.record.get("config") or {}):
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

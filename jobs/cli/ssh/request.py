"""Collects the code, the job file and the small inputs that a submission takes along to a login node."""

import glob
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import ropewalk
from ropewalk.cluster.config import CodeConfig, Packages
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.input_paths import relative_paths
from ropewalk.cluster.run.content_tree import Entry, LocalTree, file_entry, files_below
from ropewalk.cluster.run.directory import runs_root
from ropewalk.cluster.text import format_bytes

INPUTS_LIMIT_BYTES = 256 << 20
SOURCE_SUFFIXES = (".py", ".yaml", ".sbatch", ".sh", ".css", ".js", "py.typed", "Dockerfile")


@cache
def program_tree() -> LocalTree:
    """Return this program's own files, as the folder `ropewalk`."""
    home = Path(ropewalk.__file__).parent
    return LocalTree({f"ropewalk/{path.relative_to(home)}": path for path in files_below(home, _is_source)})


def _is_source(name: str) -> bool:
    return name.endswith(SOURCE_SUFFIXES)


@dataclass
class Baggage:
    """Trees and files of this machine that a command needs on the login node, and the origin of its submission."""

    trees: list[LocalTree] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)  # by path from the root directory, without its slash
    code: dict[str, Any] = field(default_factory=dict)
    project: dict[str, Any] | None = None

    def entries(self) -> dict[str, Entry]:
        """Return mode and hash of each file."""
        return {name: file_entry(path) for name, path in self.files.items()}

    def content(self, digest: str) -> bytes:
        """Return the content with a hash. Raises ConfigError if its file was changed meanwhile."""
        for tree in self.trees:
            for name, (_, each) in tree.entries.items():
                if each == digest:
                    return tree.content(name)
        for path in self.files.values():
            if file_entry(path)[1] == digest:
                return path.read_bytes()
        raise ConfigError("a file changed while it was sent; give the command again")


def baggage_of(job: str, file: Path | None, overrides: Sequence[str], each: Sequence[str]) -> Baggage:
    """Collect what a submission takes along. Raises ConfigError for a wrong configuration, and for inputs that are too large."""
    from ropewalk.jobs.runs.submit.records import wanted_project
    from ropewalk.jobs.runs.submit.submit import configure_each

    relative: set[str] = set()
    inputs: dict[str, str] = {}  # path → key

    def note(key: str, value: str, _need: str) -> str:
        if value in relative:
            inputs.setdefault(value, key)
        return value

    with relative_paths(relative):
        configs = configure_each(job, file, overrides, each)
        for config in configs:
            config.with_inputs(note)
            if config.packages is not None:
                inputs.update(dict.fromkeys(_package_files(config.packages, relative), "packages"))
    baggage = Baggage(files={str(path).lstrip("/"): path for path in _small_files(inputs)})
    if file is not None:
        baggage.files[os.path.abspath(file).lstrip("/")] = file
    _add_code(baggage, wanted_project(job, configs[0]))
    return baggage


def code_baggage() -> Baggage:
    """Collect the code of the current directory alone, for a run that goes on with it."""
    baggage = Baggage()
    _add_code(baggage, (os.getcwd(), CodeConfig()))
    return baggage


def _package_files(packages: Packages, relative: Collection[str]) -> Iterator[str]:
    """Yield the files of this machine that make a run's environment. Raises ConfigError for a folder, which is not sent."""
    path = packages.uv or packages.path
    if path is None or path not in relative:
        return
    if os.path.isdir(path):
        raise ConfigError(f"packages.path: {path}: a folder is not sent to a cluster; pack it, or name one there")
    yield path
    if packages.uv is not None:
        yield str(Path(path).with_name("pyproject.toml"))


def _small_files(inputs: Mapping[str, str]) -> Iterator[Path]:
    """Yield the files of inputs that exist on this machine. Raises ConfigError if they are too large to be sent each time."""
    total = 0
    for value, key in inputs.items():
        matches = [Path(match) for match in glob.glob(value, recursive=True)] or [Path(value)]
        for match in matches:
            for path in files_below(match, lambda _: True) if match.is_dir() else [match] * match.is_file():
                total += path.stat().st_size
                if total > INPUTS_LIMIT_BYTES:
                    raise ConfigError(
                        f"{key}: {os.path.relpath(value)}: more than {format_bytes(INPUTS_LIMIT_BYTES)} of inputs cannot be sent"
                        " with a command; copy them to the cluster, and give their absolute path there"
                    )
                yield path


def _add_code(baggage: Baggage, project: tuple[str, CodeConfig] | None) -> None:
    """Add this program or the user's repository, and the project directory if there is one."""
    from ropewalk.jobs.runs.submit.snapshot import checkout, code_state, project_of

    tree, folder, is_program = checkout()
    not_code = [runs_root().resolve()]
    baggage.code = code_state(tree, not_code)
    if is_program:
        baggage.code |= {"snapshot": program_tree().digest, "folder": "", "is_program": True}
    elif tree is not None:
        copy, left_out = _selected(tree, not_code)
        baggage.trees.append(copy)
        baggage.code |= {"snapshot": copy.digest, "left_out": left_out, "folder": folder, "is_program": False}
    if project is not None and Path(project[0]).is_dir():
        directory, code = project
        root, folder = project_of(Path(directory), Path(code.root) if code.root else None)
        copy, left_out = _selected(root, not_code, code.exclude)
        baggage.trees.append(copy)
        baggage.project = {"root": str(root), "snapshot": copy.digest, "folder": folder, "left_out": left_out}


def _selected(tree: Path, not_code: Sequence[Path], exclude: Sequence[str] = ()) -> tuple[LocalTree, list[str]]:
    from ropewalk.jobs.runs.submit.code_files import select_code

    selected = select_code(tree, not_code, exclude)
    if selected.files is None:
        raise ConfigError(f"code: {tree} cannot be copied for the run: {selected.left_out[0]}; fix that, or set code.ship=false")
    return LocalTree({name: tree / name for name in selected.files}, selected.links), selected.left_out

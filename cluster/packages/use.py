"""Use of a run's environment on a node: it is unpacked, and its interpreter comes first."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.packages.archive import FOLDER, node_disk, unpack
from ropewalk.cluster.packages.build import PYTHON, VENV

ENTERED_VARIABLE = "ROPEWALK_PACKAGES"  # folder of the environment that this process uses


def enter(record: Mapping[str, Any], root: Path) -> Path | None:
    """Unpack the environment of a run, put it first for children, and return its interpreter if this process must run in it.

    None: the run has no environment, only its program uses it, or this process runs in it. Raises ConfigError.
    """
    packages = record.get("packages")
    if not packages:
        return None
    archive = root / FOLDER / packages["archive"]
    if not archive.is_file():
        raise ConfigError(f"{FOLDER}/{archive.name}: the run's environment is gone; submit the run again")
    folder = unpack(archive, node_disk(), _finish)
    if os.environ.get(ENTERED_VARIABLE) == str(folder):
        return None
    os.environ.update(variables_of(folder))
    python = _bin(folder) / "python"
    if packages["passed_on"]:
        return None
    command = [str(python), "-P", "-c", "import ropewalk.cluster.agent.agent"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(
            f"packages: ropewalk does not run in this environment ({reason}); add ropewalk[train] to the project's dependencies"
        )
    return python


def variables_of(folder: Path) -> dict[str, str]:
    """Return the variables that put an environment first."""
    libraries = folder / PYTHON / "lib"
    values = {ENTERED_VARIABLE: str(folder), "PATH": f"{_bin(folder)}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
    values["CONDA_PREFIX" if (_bin(folder).parent / "conda-meta").is_dir() else "VIRTUAL_ENV"] = str(_bin(folder).parent)
    if any(libraries.glob("libpython*.so*")):
        values["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [str(libraries), os.environ.get("LD_LIBRARY_PATH")]))
    return values


def _bin(folder: Path) -> Path:
    """Return the folder of an environment's programs. Raises ConfigError."""
    for prefix in (folder / VENV, folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        if (prefix / "bin/python").exists():
            return prefix / "bin"
    raise ConfigError(f"packages: there is no bin/python in the environment {folder.name}; pack the folder that contains bin")


def _finish(folder: Path) -> None:
    """Adapt an unpacked environment to its folder. Raises ConfigError."""
    programs = _bin(folder)
    settings = folder / VENV / "pyvenv.cfg"
    if settings.is_file() and (folder / PYTHON).is_dir():
        lines = [line for line in settings.read_text().splitlines() if line.partition("=")[0].strip() != "home"]
        settings.write_text("\n".join([f"home = {folder / PYTHON / 'bin'}", *lines]) + "\n")
    if (programs / "conda-unpack").is_file():
        command = [str(programs / "python"), str(programs / "conda-unpack")]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConfigError(f"packages: conda-unpack failed: {' '.join(done.stderr.split())[-500:]}")


def run_in(python: Path, arguments: list[str]) -> None:
    """Replace this process by the same module under another interpreter."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(python, [str(python), "-P", "-m", *arguments])  # noqa: S606

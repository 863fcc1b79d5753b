"""Building of the environment of a uv.lock, with its interpreter, in a form that works in any folder."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.hub import progress
from ropewalk.cluster.packages.archive import FOLDER, pack
from ropewalk.cluster.run.files import locked, read_json, write_json

PYTHON, VENV = "python", "venv"  # folders in an environment
FORM = 2  # of an environment; a new number has all of them built anew


def inputs_of(lock: Path) -> dict[str, Any]:
    """Return everything that determines the environment of a uv.lock. Raises ConfigError."""
    project = lock.parent / "pyproject.toml"
    if not lock.is_file() or not project.is_file():
        raise ConfigError(f"packages.uv: {lock}: no such file, or no pyproject.toml beside it; `uv lock` makes it from that")
    system = f"{sys.platform} {platform.machine()} {' '.join(platform.libc_ver())}"
    return {"form": FORM, "python": platform.python_version(), "platform": system, "lock": _digest(lock, project)}


def hash_of(inputs: Mapping[str, Any]) -> str:
    """Return the hash by which an environment is built in run.yaml."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:40]


def build(lock: Path, root: Path) -> dict[str, Any]:
    """Build the environment of a uv.lock under a runs' root, unless it is there, and return its description for run.yaml.

    Raises ConfigError with uv's message.
    """
    project, store, wanted = lock.parent, root / FOLDER, inputs_of(lock)
    name = hash_of(wanted)
    description = store / f"{name}.json"
    store.mkdir(parents=True, exist_ok=True)
    with locked(store / f".{name}.lock"):
        built = read_json(description)
        if built is None or not (store / built["archive"]).is_file():
            with tempfile.TemporaryDirectory(prefix="packages-") as folder:
                progress.notify(f"building the environment of {lock}, once: this may take minutes ...")
                _build(_uv(), project, Path(folder) / "env")
                built = {**wanted, "source": "uv", "hash": name, "archive": pack(Path(folder) / "env", store)}
            write_json(description, built)
    return dict(built)


def _digest(*files: Path) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()


def _uv() -> str:
    """Return the uv program. Raises ConfigError."""
    beside = Path(sys.executable).with_name("uv")
    uv = shutil.which("uv") or (str(beside) if beside.is_file() else None)
    if uv is None:
        raise ConfigError(f"packages.uv: uv is not installed on {platform.node()}: `pip install uv`")
    return uv


def _build(uv: str, project: Path, folder: Path) -> None:
    """Make an environment: a copy of an interpreter, and beside it a virtual environment that names it by a relative path."""
    folder.mkdir()
    python = _copy_interpreter(uv, folder / PYTHON)
    venv = folder / VENV
    _run([uv, "venv", "--relocatable", "--no-project", "--python", str(python), str(venv)])
    options = ["--frozen", "--no-install-project", "--no-install-workspace", "--no-editable", "--no-dev", "--link-mode", "copy"]
    options += ["--python", platform.python_version()]  # else uv would remove `venv` for a project that needs another one
    _run([uv, "sync", *options, "--compile-bytecode", "--project", str(project)], UV_PROJECT_ENVIRONMENT=str(venv))
    for link in sorted((venv / "bin").glob("python*")):
        if link.is_symlink() and os.readlink(link).startswith("/"):
            link.unlink()
            link.symlink_to(f"../../{PYTHON}/bin/{python.name}")


def _copy_interpreter(uv: str, folder: Path) -> Path:
    """Bring an interpreter of this version that works in any folder: uv's own, else a copy of this machine's."""
    version = platform.python_version()
    try:
        with tempfile.TemporaryDirectory(prefix="python-") as parent:
            _run([uv, "python", "install", "--no-bin", "--install-dir", parent, version])
            installed = next(path for path in Path(parent).glob("cpython-*") if path.is_dir() and not path.is_symlink())
            shutil.copytree(installed, folder, symlinks=True)
    except (ConfigError, StopIteration):  # this machine has no way to it
        shutil.rmtree(folder, ignore_errors=True)
        copy_own(Path(sys.base_prefix), folder)
    python = folder / f"bin/python{version.rpartition('.')[0]}"
    _run([str(python), "-I", "-c", "import ctypes, ssl, zlib"])
    return python


def copy_own(prefix: Path, folder: Path) -> None:
    """Copy the interpreter of this process, without its packages."""
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    library = Path(os.__file__).parent
    ignore = shutil.ignore_patterns("site-packages", "dist-packages", "__pycache__", "test", "tests")
    (folder / "bin").mkdir(parents=True)
    shutil.copy2(Path(sys.executable).resolve(), folder / "bin" / name)
    shutil.copytree(library, folder / "lib" / name, symlinks=True, ignore=ignore)
    (folder / "lib" / name / "site-packages").mkdir(exist_ok=True)
    for shared in (prefix / "lib").glob("libpython*.so*"):
        shutil.copy2(shared, folder / "lib" / shared.name, follow_symlinks=False)


def _run(command: Sequence[str], **variables: str) -> None:
    inherited = {name: value for name, value in os.environ.items() if name not in {"VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME"}}
    done = subprocess.run(
        command, env={**inherited, **variables}, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        message = " ".join((done.stderr or done.stdout).split())[-1500:]
        raise ConfigError(f"packages: `{' '.join(map(str, command[:3]))}` failed: {message}")

"""A program with the environment of a uv.lock: its interpreter, its packages, and nothing built twice."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.packages.archive import FOLDER
from ropewalk.cluster.spec import RunState
from tests.jobs.orchestration.command.programs import Start, ended

PROJECT = """[project]
name = "mine"
version = "0.1"
requires-python = ">=3.11"
dependencies = ["small @ file://{folder}/small"]
"""
SMALL = """[project]
name = "small"
version = "1.0"
[project.scripts]
small-program = "small:main"
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""
BACKEND = """import zipfile
def build_wheel(folder, settings=None, metadata=None):
    name = "small-1.0-py3-none-any.whl"
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        wheel.writestr("small.py", "def main(): print('small runs')")
        about = "small-1.0.dist-info"
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\\nName: small\\nVersion: 1.0\\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{about}/entry_points.txt", "[console_scripts]\\nsmall-program = small:main\\n")
        wheel.writestr(f"{about}/RECORD", "")
    return name
"""
PROGRAM = """
import ssl, subprocess, sys
import small
print("prefix", sys.prefix, sys.base_prefix, flush=True)
small.main()
sys.stdout.flush()
subprocess.run(["small-program"], check=True)
"""


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    """A uv.lock of a project with one package, which is built from a folder: no network is needed."""
    if (uv := shutil.which("uv")) is None:
        pytest.skip("needs uv: pip install uv")
    (tmp_path / "small").mkdir()
    (tmp_path / "small/pyproject.toml").write_text(SMALL)
    (tmp_path / "small/backend.py").write_text(BACKEND)
    (tmp_path / "pyproject.toml").write_text(PROJECT.format(folder=tmp_path))
    subprocess.run([uv, "lock", "--offline", "--project", str(tmp_path)], check=True, capture_output=True)
    return tmp_path / "uv.lock"


def test_a_program_runs_with_its_own_interpreter_and_packages(
    lock: Path, start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Path(os.environ["TMPDIR"]) / f"ropewalk-packages-{os.getuid()}"
    runs = [start(["python", "-c", PROGRAM], f"packages.uv={lock}", "launch=once") for _ in range(2)]
    for run in runs:
        assert ended(run).state is RunState.SUCCEEDED, (run.log_dir(1) / "rank-0.log").read_text()
        lines = (run.log_dir(1) / "rank-0.log").read_text().splitlines()
        folder = disk / run.record["packages"]["archive"].partition(".")[0]
        assert lines[:3] == [f"prefix {folder}/venv {folder}/python", "small runs", "small runs"]
    assert runs[0].record["packages"] == runs[1].record["packages"]
    archives = [path.name for path in (tmp_path / "runs" / FOLDER).glob("*.tar.zst")]
    assert archives == [runs[0].record["packages"]["archive"]], "the environment of a lock is built once"
    assert sum("building the environment" in line for line in caplog.messages) == 1


def test_a_project_that_needs_another_python_is_refused(lock: Path, start: Start) -> None:
    major, minor = sys.version_info[:2]
    higher = f">={major}.{minor + 1}"
    if subprocess.run(["uv", "python", "find", "--system", higher], capture_output=True, check=False).returncode:
        pytest.skip(f"needs Python {higher} beside this one: without it uv fails anyway")
    for file in (lock, lock.with_name("pyproject.toml")):
        file.write_text(file.read_text().replace('requires-python = ">=3.11"', f'requires-python = "{higher}"'))
    with pytest.raises(ConfigError, match="incompatible with the project's Python requirement"):
        start(["true"], f"packages.uv={lock}")


def test_what_is_missing_is_named(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"no such file, or no pyproject.toml beside it"):
        start(["true"], "packages.uv=nothing/uv.lock")
    with pytest.raises(ConfigError, match="name one of: uv"):
        start(["true"], "packages={}")
    for name in ("uv.lock", "pyproject.toml"):
        (tmp_path / name).write_text("")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(ConfigError, match="pip install uv"):
        start(["true"], f"packages.uv={tmp_path}/uv.lock")

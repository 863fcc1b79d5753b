"""The wheel: built, installed elsewhere, and run from another directory."""

import importlib.util
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.installed import run

ROOT = Path(__file__).resolve().parents[1]


def test_the_wheel_holds_the_program_and_its_files(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"ropewalk/__init__.py", "ropewalk/py.typed", "ropewalk/jobs/training/loop/__init__.py"} <= names
    packed = {name.rpartition("/")[2] for name in names if name.startswith("ropewalk/jobs/configs/")}
    assert {p.name for p in (ROOT / "jobs/configs").glob("*.yaml")} <= packed
    assert {name.partition("/")[0] for name in names} == {"ropewalk", wheel.name.partition("-py3")[0] + ".dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_every_file_of_the_packages_is_packed(wheel: Path) -> None:
    """The wheel is made of the sdist, so that neither lacks one; READMEs stay in the repository."""
    folders = sorted(link.name for link in (ROOT / "src/ropewalk").iterdir() if link.is_symlink())
    tracked = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    names = set(zipfile.ZipFile(wheel).namelist())
    ours = [name for name in tracked if not name.endswith(".md") and (ROOT / name).exists()]
    assert [name for name in ours if f"ropewalk/{name}" not in names] == []


def test_the_image_is_built_from_all_that_is_packed() -> None:
    """Docker sees of the checkout only what .dockerignore takes back."""
    unignored = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    folders = {link.name for link in (ROOT / "src/ropewalk").iterdir() if link.is_symlink()}
    assert {*folders, "src", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"} <= unignored


def test_it_runs_from_another_directory(command: Path, tmp_path: Path) -> None:
    assert "quickstart" in run(command, tmp_path, "--help").stdout
    listed = run(command, tmp_path, "run", "preprocess", "--help")
    assert "tokenizer" in listed.stdout, listed.stderr
    assert run(command, tmp_path, "ps", "--json").stdout.strip() == "[]"
    (tmp_path / "a.jsonl").write_text('{"id": "1", "text": "one"}\n')
    dry = run(command, tmp_path, "submit", "preprocess", "input=[a.jsonl]", "output=out", "tokenizer={train: 300}", "--script")
    assert "ropewalk.cluster.agent" in dry.stdout, dry.stderr
    assert run(command, tmp_path, "run", "preprocess", "outptu=x").returncode == 2
    assert run(command.parent / "python", tmp_path, "-m", "ropewalk", "ps", "--json").stdout.strip() == "[]"


def test_it_is_the_wheel_that_runs(command: Path, tmp_path: Path) -> None:
    code = "import ropewalk.cluster, ropewalk.jobs.cli; print(ropewalk.cluster.__file__); print(ropewalk.jobs.cli.__file__)"
    done = subprocess.run([command.parent / "python", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert all(str(command.parent.parent) in line for line in done.stdout.splitlines())


@pytest.mark.parametrize("name", ["cluster", "datapipe", "jobs", "k8s", "sharding", "slurm"])
def test_nothing_is_importable_under_a_bare_name(command: Path, tmp_path: Path, name: str) -> None:
    code = f"import importlib.util; print(importlib.util.find_spec({name!r}))"
    done = subprocess.run([command.parent / "python", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"
    assert importlib.util.find_spec(f"ropewalk.{name}") is not None

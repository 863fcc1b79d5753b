"""The wheel: built, installed elsewhere, and run from another directory."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the files that git knows, as from a clone."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    names = subprocess.run(["git", "ls-files", "-z", "--cached"], cwd=ROOT, capture_output=True, check=False).stdout.decode()
    paths = [n for n in names.split("\0") if n] or [str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if p.is_file()]
    for name in paths:
        if (ROOT / name).is_file() and not name.startswith((".venv", "tests/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(out), str(source)]
    subprocess.run(command, check=True)
    return next(out.glob("ropewalk-*.whl"))


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ropewalk` of an environment of its own that sees this one's dependencies, but not this checkout."""
    home = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    python = home / "bin/python"
    site = next(home.glob("lib/python3.*/site-packages"))
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True)
    # a path file of plain directories: editable installs of the outer environment are not seen through it
    outer = [p for p in sys.path if p.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(outer) + "\n")
    return home / "bin/ropewalk"


def run(command: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "ROPEWALK_RUNS", "ROPEWALK_CLUSTERS"}}
    return subprocess.run([command, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_wheel_holds_the_program_and_its_files(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("cluster", "datapipe", "jobs", "sharding"):
        assert f"{folder}/__init__.py" in names
        assert f"{folder}/py.typed" in names
    assert "jobs/training/__init__.py" in names
    packed = {name.rpartition("/")[2] for name in names if name.startswith("jobs/configs/")}
    assert {p.name for p in (ROOT / "jobs/configs").glob("*.yaml")} <= packed
    assert not [name for name in names if name.startswith("tests/")]
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_every_module_of_the_checkout_is_packed(wheel: Path) -> None:
    known = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    names = set(zipfile.ZipFile(wheel).namelist())
    assert [n for n in known if not n.startswith("tests/") and (ROOT / n).exists() and n not in names] == []


def test_the_image_is_built_from_all_that_is_packed() -> None:
    """Of the checkout, docker sees what .dockerignore takes back."""
    seen = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    modules = [f"{name}.py" for name in project["py-modules"]]
    packages = [name.removesuffix("*") for name in project["packages"]["find"]["include"]]
    assert {*modules, *packages, "pyproject.toml", "constraints.txt", "README.md", "LICENSE"} <= seen


def test_it_runs_from_another_directory(command: Path, tmp_path: Path) -> None:
    assert "quickstart" in run(command, tmp_path, "--help").stdout
    listed = run(command, tmp_path, "run", "preprocess", "--help")
    assert "tokenizer" in listed.stdout, listed.stderr
    assert run(command, tmp_path, "ps", "--json").stdout.strip() == "[]"
    (tmp_path / "a.jsonl").write_text('{"id": "1", "text": "one"}\n')
    dry = run(command, tmp_path, "submit", "preprocess", "input=[a.jsonl]", "output=out", "tokenizer={train: 300}", "--dry-run")
    assert "cluster.agent" in dry.stdout, dry.stderr
    assert run(command, tmp_path, "run", "preprocess", "outptu=x").returncode == 2


def test_it_is_the_wheel_that_runs(command: Path, tmp_path: Path) -> None:
    code = "import cluster, jobs.cli; print(cluster.__file__); print(jobs.cli.__file__)"
    done = subprocess.run([command.parent / "python", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert all(str(command.parent.parent) in line for line in done.stdout.splitlines())

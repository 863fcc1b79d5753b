"""Client commands of a plain `pip install ropewalk`, without the extra `train`, and the remedies that other commands name."""

import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from ropewalk.cluster.run.directory import RunDir

ROOT = Path(__file__).resolve().parents[1]
REMEDY = "pip install 'ropewalk[train]'"
COMMANDS = """
import json, sys, traceback
from ropewalk.jobs.cli import main as cli
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    try:
        cli.main()
    except SystemExit as leave:
        print("CODE", leave.code, file=sys.stderr)
    except Exception:
        traceback.print_exc()
"""
WORK = {  # by command: its exit code
    "doctor": 0,
    "ps": 0,
    "show": 0,
    "logs": 0,
    "why": 0,
    "cancel": 0,
    "submit": 0,
    "run": 2,
    "chat": 2,
}


def light_packages(folder: Path) -> Path:
    """Link the packages that a plain install brings, with their dependencies, into a folder."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted, done = [Requirement(line) for line in project["dependencies"]], set[str]()
    while wanted:
        requirement = wanted.pop()
        if requirement.name.lower() in done or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        done.add(requirement.name.lower())
        installed = distribution(requirement.name)
        wanted += [Requirement(line) for line in installed.requires or []]
        for top in {file.parts[0] for file in installed.files or []} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(installed.locate_file(top))).resolve())
    assert not {"torch", "numpy", "ray", "pyarrow"} & done
    return folder


def check(python: list[str], home: Path, environment: dict[str, str]) -> None:
    """Run the commands in a folder with a run; each one works, or names the remedy in one line."""
    record = {"job": "pretrain", "cluster": "local", "config": {}, "resources": {"nodes": 1}}
    run = RunDir.create("x", record, home / "runs")
    (home / "clusters.yaml").write_text(yaml.safe_dump({"big": {"backend": "slurm", "runs": str(home / "runs")}}))
    arguments = {name: [run.id] for name in WORK} | {"ps": ["--all", "--json"]}
    arguments |= {"doctor": [], "submit": ["command", "--on", "big", "--script", "--", "true"], "run": ["command", "--", "true"]}
    environment = {**environment, "ROPEWALK_RUNS": str(home / "runs"), "ROPEWALK_CLUSTERS": str(home / "clusters.yaml")}
    commands = json.dumps([[name, *arguments[name]] for name in WORK])
    done = subprocess.run(
        [*python, "-c", COMMANDS, commands],
        cwd=home,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    codes = [line.split()[1] for line in done.stderr.splitlines() if line.startswith("CODE")]
    assert "Traceback" not in done.stderr, done.stderr
    assert dict(zip(WORK, codes, strict=True)) == {name: str(code) for name, code in WORK.items()}, done.stderr
    assert done.stderr.count(REMEDY) == 2, done.stderr


def test_the_clients_commands_need_the_plain_dependencies_only(tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    path = os.pathsep.join([str(light_packages(packages)), str(ROOT / "src")])
    check(
        [f"{sys.base_prefix}/bin/python{sys.version_info.major}.{sys.version_info.minor}", "-S"], tmp_path, {"PYTHONPATH": path}
    )


def test_the_keys_of_every_job_are_read_without_the_other_packages() -> None:
    """A laptop submits any job to a cluster behind ssh."""
    code = """
import sys
from ropewalk.jobs.registry import JOBS, config_of
for job in JOBS.values():
    config_of(job)
print(*sorted({"torch", "numpy", "ray", "pyarrow", "transformers"} & {*sys.modules}))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


@pytest.mark.soak("builds the wheel and installs thirty packages")
def test_a_plain_install_of_the_wheel_is_light(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "light")], check=True)
    python = tmp_path / "light/bin/python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt"), str(wheel)]
    subprocess.run(install, check=True)
    (tmp_path / "home").mkdir()
    check([str(python)], tmp_path / "home", {"PYTHONPATH": ""})
    size = sum(path.stat().st_size for path in (tmp_path / "light").rglob("*") if path.is_file())
    assert size < 150 << 20

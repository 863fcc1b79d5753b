"""The section "Add a job" of jobs/README.md, executed as it stands there."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "jobs/README.md"


def blocks() -> dict[str, str]:
    """The code of the section, by language."""
    section = README.read_text().partition("## Add a job")[2].partition("\n## ")[0]
    return dict(re.findall(r"```(\w+)\n(.*?)```", section, re.DOTALL))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The module and its entry point, as an installed package has them."""
    code, folder = blocks(), tmp_path / "site"
    package = folder / "greet-1.0.dist-info"
    package.mkdir(parents=True)
    (folder / "greet.py").write_text(code["python"])
    points = tomllib.loads(code["toml"])["project"]["entry-points"]
    lines = [f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in named.items()) for group, named in points.items()]
    (package / "entry_points.txt").write_text("\n".join(lines))
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: greet\nVersion: 1.0\n")
    return folder


def ropewalk(site: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{site}", "ROPEWALK_RUNS": str(site.parent / "runs")}
    environment |= {"WANDB_MODE": "disabled", "COLUMNS": "200"}
    command = [sys.executable, "-m", "ropewalk.jobs.cli", *arguments]
    done = subprocess.run(command, cwd=site.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_job_as_the_readme_adds_it(site: Path) -> None:
    run, explained = blocks()["sh"].splitlines()
    result = json.loads(ropewalk(site, *run.split()[1:], "--json").splitlines()[-1])
    assert (result["job"], result["state"], result["greeting"]) == ("greet", "SUCCEEDED", "Hello, world!")
    assert "name to greet" in ropewalk(site, *explained.split()[1:])

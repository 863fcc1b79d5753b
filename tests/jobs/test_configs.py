"""The job files to start from: one for each job, checked as a user's file is, with the same opening and the same inputs."""

import re
from pathlib import Path

import pytest

from ropewalk import jobs
from ropewalk.cluster.config_reader import load_config, read_job_file, read_yaml
from ropewalk.jobs.registry import JOBS, config_of

FILES = sorted((Path(jobs.__file__).parent / "configs").glob("*.yaml"))
INPUTS = ("data/", "models/")  # folders of the inputs in all files


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the files in a directory with nothing but the suites of audit, which are not a part of the program."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "suites").mkdir()
    for name in ("crows_pairs.csv", "stereoset.json", "winobias.jsonl"):
        (tmp_path / "suites" / name).touch()


def test_every_job_has_a_file() -> None:
    without = {"function", "dev"}  # submitted by a program, and by a command of their own
    assert {str(read_yaml(file)["run"]) for file in FILES} == JOBS.keys() - without


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.stem))
def test_a_file_is_valid_anywhere_and_says_where_all_keys_are(file: Path) -> None:
    values = read_yaml(file)
    job = str(values["run"])
    load_config(config_of(JOBS[job]), read_job_file(file, job))
    opening = file.read_text().partition("\nrun: ")[0]
    assert f"# All keys: ropewalk run {job} --help --all" in opening
    lines = [line.partition("#")[0] for line in file.read_text().splitlines()]
    assert "jobs/configs" not in "\n".join(lines)
    assert {"name", "seed"} - {"seed" for quiet in ("pipeline", "serve", "command") if job == quiet} <= values.keys()
    paths = re.findall(r"[\w/-]+\.jsonl(?:\.zst)?", "\n".join(lines))
    assert [path for path in paths if not path.startswith(INPUTS)] == []


def test_a_file_names_gpus() -> None:
    assert any("gpus" in (read_yaml(file).get("resources") or {}) for file in FILES)

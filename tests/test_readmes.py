"""READMEs: flow drawings, links, job files, and names of tests."""

import re
from pathlib import Path

import pytest
import yaml

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.runs.submit.submit import configure

ROOT = Path(__file__).resolve().parents[1]
SOAK = re.compile(r"mark\.soak\(\s*\"([^\"]+)\"")
FOLDERS = ("cluster", "datapipe", "jobs", "k8s", "sharding", "slurm")
ROOMS = ("evaluation", "inference", "models", "orchestration", "runs", "serving", "training")  # of jobs


@pytest.mark.parametrize("folder", FOLDERS)
def test_it_draws_the_flow_and_is_linked(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text()
    assert "```" in text, "the flow is drawn"
    assert f"({folder}/README.md)" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_of_jobs_draws_its_flow_and_is_linked(room: str) -> None:
    assert "```" in (ROOT / "jobs" / room / "README.md").read_text()
    assert f"({room}/README.md)" in (ROOT / "jobs/README.md").read_text()


def test_links_lead_somewhere() -> None:
    rooms = [ROOT / "jobs" / room / "README.md" for room in ROOMS]
    for page in [ROOT / "README.md", ROOT / "tests/README.md", *(ROOT / folder / "README.md" for folder in FOLDERS), *rooms]:
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.relative_to(ROOT)}: {link}"


def test_named_tests_exist() -> None:
    """The promises of tests/README.md and the reasons of soak markers name tests."""
    modules = {path: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    defined = {name for text in modules.values() for name in re.findall(r"^def (test_\w+)", text, re.MULTILINE)}
    texts = [(ROOT / "tests/README.md").read_text(), *(reason for text in modules.values() for reason in SOAK.findall(text))]
    names = {name for text in texts for name in re.findall(r"\btest_\w+\b(?!\.py)", text)}
    assert sorted(names - defined) == []
    files = {name for text in texts for name in re.findall(r"\btest_\w+\.py", text)}
    assert sorted(files - {path.name for path in modules}) == []


def job_files() -> dict[str, str]:
    """The YAML blocks of the README that are files, by name: a block is one file, to be pasted as it stands."""
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return {re.match(r"# ([\w-]+)\.yaml\b", block)[1]: block for block in blocks}  # type: ignore[index]


@pytest.mark.parametrize("name", sorted(job_files().keys() - {"clusters"}))
def test_a_job_file_of_the_readme_is_one_as_it_stands(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROPEWALK_RUNS", str(tmp_path / "runs"))
    for job in ("finetune", "align"):
        run = RunDir.create(job, {"job": job, "config": {"steps": 1}}, tmp_path / "runs")
        run.path.rename(tmp_path / "runs" / f"{job.upper()}-RUN")
    for other, text in job_files().items():
        (tmp_path / f"{other}.yaml").write_text(text)
    (tmp_path / "quiz.yaml").write_text("task: quiz\n")
    config = configure(name, tmp_path / f"{name}.yaml", [])
    assert set(yaml.safe_load((tmp_path / f"{name}.yaml").read_text())) <= set(config.model_dump())

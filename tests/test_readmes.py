"""READMEs: flow drawings, links, and names of tests."""

import re
from pathlib import Path

import pytest

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
    """The promises of tests/README.md, the kinds of faults of docs/failures.md and the reasons of soak markers name tests."""
    modules = {path: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    defined = {name for text in modules.values() for name in re.findall(r"^def (test_\w+)", text, re.MULTILINE)}
    documents = [(ROOT / page).read_text() for page in ("tests/README.md", "docs/failures.md")]
    texts = [*documents, *(reason for text in modules.values() for reason in SOAK.findall(text))]
    names = {name for text in texts for name in re.findall(r"\btest_\w+\b(?!\.py)", text)}
    assert sorted(names - defined) == []
    files = {name for text in texts for name in re.findall(r"\btest_\w+\.py", text)}
    assert sorted(files - {path.name for path in modules}) == []

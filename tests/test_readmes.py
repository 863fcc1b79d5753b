"""The README of each folder names every module of it, once, by its path in the folder."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("cluster", "datapipe", "jobs", "k8s", "sharding", "slurm")
FILES_OF = re.compile(r"`((?:[\w-]+/)*[\w-]+\.py)`")


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_module_is_named_once(folder: str) -> None:
    place = ROOT / folder
    text = (place / "README.md").read_text()
    rows = [FILES_OF.match(line.strip(" |-")) for line in text.splitlines()]
    told = [row[1] for row in rows if row]
    there = {str(path.relative_to(place)) for path in place.rglob("*.py") if path.name not in {"__init__.py", "__main__.py"}}
    assert sorted(told) == sorted(there)


@pytest.mark.parametrize("folder", FOLDERS)
def test_it_draws_the_flow_and_is_linked(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text()
    assert "```" in text, "the flow is drawn"
    assert f"({folder}/README.md)" in (ROOT / "README.md").read_text()


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "tests/README.md", *(ROOT / folder / "README.md" for folder in FOLDERS)]:
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.relative_to(ROOT)}: {link}"

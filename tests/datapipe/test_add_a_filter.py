"""The steps of "Add a filter" in datapipe/README.md, followed in a directory with documents, and the filter in a package."""

import json
import tomllib
from pathlib import Path

import pytest

from tests.fakes.documents import some_documents, write_lines
from tests.readme import Section, ropewalk

SECTION = Section("datapipe/README.md", "Add a filter")
CALM = " ".join(f"word{number}" for number in range(60))
TEXTS = {"calm": CALM, "loud": CALM.upper(), "short": "a few words"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with the README's files and a folder of documents."""
    home = tmp_path / "home"
    others = [{**each, "text": f"{each['text']} {CALM}"} for each in some_documents(400)]
    write_lines(home / "docs/a.jsonl", [*({"id": name, "text": text} for name, text in TEXTS.items()), *others])
    SECTION.write_files(home)
    assert sorted(path.name for path in home.iterdir()) == ["docs", "preprocess.yaml", "shouting.py"]
    return home


def rejected(folder: Path) -> dict[str, str]:
    lines = [json.loads(line) for path in (folder / "data/rejected").iterdir() for line in path.read_text().splitlines()]
    return {line["id"]: line["reason"] for line in lines if line["id"] in TEXTS}


@pytest.mark.soak("a process for each core and Ray; make test reports this filter's mistakes, and dry-runs it from a package")
def test_a_filter_as_the_readme_adds_it(folder: Path) -> None:
    (command,) = SECTION.commands()
    ropewalk(folder, *command)
    assert rejected(folder) == {"short": "min_words.too_few", "loud": "shouting:Shouting.capitals"}
    manifest = json.loads((folder / "data/manifest.json").read_text())
    assert manifest["config"]["filters"] == [{"min_words": {"words": 50}}, {"shouting:Shouting": {"share": 0.6}}]


@pytest.mark.parametrize(
    ("filters", "error"),
    [
        ("{shouting:Shouting: {shar: 1}}", "filters: shouting:Shouting: unknown key 'shar'; did you mean 'share'?"),
        ("[shouting:Shoutin]", "filters: shouting:Shoutin: {folder}/shouting.py defines no 'Shoutin'; did you mean 'Shouting'?"),
        ("[shoutin:Shouting]", "filters: shoutin:Shouting cannot be imported: there is no module 'shoutin' in {folder}"),
        (
            "[shouting:Verdict]",
            "filters: shouting:Verdict in {folder}/shouting.py is a class; it must be a subclass of rope",
        ),
        ("[shouting]", "filters: unknown filter 'shouting'; available: c4, decontaminate"),
    ],
)
def test_a_mistake_is_reported_before_submission(filters: str, error: str, folder: Path) -> None:
    (command,) = SECTION.commands()
    out, err = ropewalk(folder, *command, f"filters={filters}", expect=2)
    assert (out, len(err.splitlines())) == ("", 1)
    assert error.format(folder=folder) in err
    assert not (folder / "runs").exists()


def test_a_package_gives_it_a_short_name(folder: Path, tmp_path: Path) -> None:
    points = tomllib.loads(SECTION.code["toml"])["project"]["entry-points"]
    lines = [f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in named.items()) for group, named in points.items()]
    package = tmp_path / "site/shouting-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "entry_points.txt").write_text("\n".join(lines))
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: shouting\nVersion: 1.0\n")
    (folder / "shouting.py").rename(tmp_path / "site/shouting.py")
    command = ("run", "preprocess", "-c", "preprocess.yaml", "--dry-run")
    ropewalk(folder, *command, "filters={shouting: {share: 1}}", path=str(tmp_path / "site"))
    _, err = ropewalk(folder, *command, "filters={shouting: {shar: 1}}", path=str(tmp_path / "site"), expect=2)
    assert "filters: shouting: unknown key 'shar'; did you mean 'share'?" in err

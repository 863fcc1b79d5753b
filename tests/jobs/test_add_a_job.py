"""The section "Add a job" of jobs/README.md, followed in an empty directory, and the same job in a package."""

import json
import tomllib
from pathlib import Path

import pytest

from tests.readme import Section, ropewalk

SECTION = Section("jobs/README.md", "Add a job")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with the README's file and nothing else."""
    home = tmp_path / "home"
    home.mkdir()
    SECTION.write_files(home)
    assert [path.name for path in home.iterdir()] == ["greet.py"]
    return home


def test_a_job_as_the_readme_adds_it(folder: Path) -> None:
    run, explained = SECTION.commands()
    assert "greet:SPEC" in run
    result = json.loads(ropewalk(folder, *run, "--json")[0].splitlines()[-1])
    assert (result["job"], result["state"], result["greeting"]) == ("greet", "SUCCEEDED", "Hello, world!")
    (folder / "greet.yaml").write_text("run: greet:SPEC\nrecipient: world\n")
    assert "Hello, world!" in ropewalk(folder, "run", "-c", "greet.yaml")[0]
    assert "name to greet" in ropewalk(folder, "help", "greet:SPEC")[0]
    page = ropewalk(folder, *explained)[0]
    assert "ropewalk run greet:SPEC [-c FILE.yaml]" in page
    assert "name to greet" in page
    assert "greet" in ropewalk(folder, "ps", "--all")[0]


def test_its_run_is_resumed_from_another_directory(folder: Path, tmp_path: Path) -> None:
    text = (folder / "greet.py").read_text()
    (folder / "greet.py").write_text(text.replace("    return", "    import greet_once\n    return", 1))
    ropewalk(folder, "run", "greet:SPEC", "recipient=world", "retries.bugs=0", expect=1)
    (folder / "greet_once.py").write_text("")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    out, _ = ropewalk(elsewhere, "resume", "latest", "--json", runs=folder / "runs")
    assert json.loads(out.splitlines()[-1])["greeting"] == "Hello, world!"


@pytest.mark.soak("a sweep of its own; make test runs such a job, and sweeps of a job that a plug-in names")
def test_a_sweep_searches_its_keys(folder: Path) -> None:
    text = (folder / "greet.py").read_text()
    text = text.replace('"greeting"', '"length": len(context.config(GreetConfig).recipient), "greeting"')
    (folder / "greet.py").write_text(text)
    keys = ("job=greet:SPEC", 'space={"recipient": {"choice": ["a", "abc"]}}', "metric=length", "mode=max", "search=grid")
    out, _ = ropewalk(folder, "run", "sweep", *keys, "scheduler=fifo", "--json")
    assert json.loads(out.splitlines()[-1])["best"] == len("abc")


@pytest.mark.parametrize(
    ("change", "typed", "error"),
    [
        (("", ""), "greet:SPEK", "{file} defines no 'SPEK'; did you mean 'SPEC'?"),
        (("", ""), "greeter:SPEC", "there is no module 'greeter' in {folder} or in PYTHONPATH; start ropewalk in the folder"),
        (("", ""), "greet.py:SPEC", "'greet.py:SPEC' must be MODULE:NAME, such as mine:SPEC for mine.py in {folder}"),
        (("", ""), "greet:main", "greet:main in {file} is of type function; it must be a JobSpec"),
        (("entry=", "entri="), "greet:SPEC", "{file}, line 17: TypeError: "),
        (
            ("greet:main", "greet:mein"),
            "greet:SPEC",
            "entry: greet:mein: {file} defines no 'mein'; did you mean 'main'?",
        ),
        (
            ("greet:GreetConfig", "greet:main"),
            "greet:SPEC",
            "greet:main in {file} is of type function; it must be a subclass",
        ),
        (
            ('name="greet"', 'name="pretrain"'),
            "greet:SPEC",
            "the name 'pretrain' belongs to a built-in job; give your JobSpec",
        ),
        (
            ("from pydantic", "from pydantick"),
            "greet:SPEC",
            "{file}, line 2: ModuleNotFoundError: No module named 'pydantick'; in",
        ),
        (("def main(", "def main)"), "greet:SPEC", "{file}, line 13: unmatched ')'; correct the file"),
        (("", ""), "greet", "unknown job 'greet'; jobs: preprocess, pretrain, "),
    ],
)
def test_a_mistake_is_reported_before_submission(change: tuple[str, str], typed: str, error: str, folder: Path) -> None:
    file = folder / "greet.py"
    file.write_text(file.read_text().replace(*change))
    out, err = ropewalk(folder, "run", typed, "recipient=world", expect=2)
    assert (out, len(err.splitlines())) == ("", 1)
    assert error.format(file=file, folder=folder) in err
    assert not (folder / "runs").exists()


def test_a_module_that_another_shadows_is_named(folder: Path) -> None:
    (folder / "greet.py").rename(folder / "calendar.py")
    _, err = ropewalk(folder, "run", "calendar:SPEC", "recipient=world", expect=2)
    assert f"calendar.py under this name; give {folder}/calendar.py another one" in err


def test_a_package_gives_it_a_short_name(folder: Path, tmp_path: Path) -> None:
    points = tomllib.loads(SECTION.code["toml"])["project"]["entry-points"]
    lines = [f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in named.items()) for group, named in points.items()]
    package = folder / "greet-1.0.dist-info"
    package.mkdir()
    (package / "entry_points.txt").write_text("\n".join(lines))
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: greet\nVersion: 1.0\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    out, _ = ropewalk(elsewhere, "run", "greet", "recipient=world", "--json", path=str(folder))
    assert json.loads(out.splitlines()[-1])["greeting"] == "Hello, world!"

"""Outcomes of `make test`: a flaky test is recorded and named, every other failure fails the run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import os
import signal
import sys
from pathlib import Path
import pytest

def is_first_time(name):
    path = Path(__file__).with_name(name)
    return not path.exists() and not path.touch()

def test_flaky():
    assert not is_first_time("flaky"), "fails the first time"

def test_crash():
    if is_first_time("crash"):
        os.kill(os.getpid(), signal.SIGKILL)

def test_bytecode_is_cached():
    assert not sys.dont_write_bytecode
    assert "PYTHONDONTWRITEBYTECODE" not in os.environ

def test_skipped():
    if is_first_time("skipped"):
        assert False, "fails before it is skipped"
    pytest.skip("the program has gone")

@pytest.mark.soak("a reason")
def test_long():
    pass
"""

ROOT = Path(__file__).resolve().parents[1]

LAB = """
import time
from pathlib import Path
import pytest

pytest_plugins = ["tests.workers"]
LOG = Path(__file__).parents[1] / "labs"

@pytest.fixture(scope="session")
def lab():
    with LOG.open("a") as log:
        print("up", end=" ", file=log)
    yield
    time.sleep(1)
    with LOG.open("a") as log:
        print("down", end=" ", file=log)
"""

INTERRUPT = """
import os, signal, time

def test_lab(lab):
    os.killpg(os.getppid(), signal.SIGINT)  # as Ctrl-C does
    time.sleep(60)
"""


def run(folder: Path, *arguments: str, workers: int = 1) -> tuple[int, list[str]]:
    """Return the exit code and the lines of a run of the tests in a folder."""
    text = (ROOT / "tests/run.py").read_text()
    (folder / "tests/run.py").write_text(text.replace("WORKERS, SOAK_WORKERS = 6,", f"WORKERS, SOAK_WORKERS = {workers},"))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # they take seconds to import
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # as in the containers of some CI systems
    done = subprocess.run(
        [sys.executable, "-m", "tests.run", *arguments],
        cwd=folder,
        env=environment,
        process_group=0,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return done.returncode, done.stdout.splitlines()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/__init__.py").touch()
    (tmp_path / "tests/test_it.py").write_text(TESTS)
    (tmp_path / "tests/conftest.py").write_text('pytest_plugins = ["tests.workers"]')
    shutil.copy(Path(__file__).with_name("workers.py"), tmp_path / "tests")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = soak\n")
    return tmp_path


def test_a_test_that_passes_alone_is_flaky_until_its_third_time(checkout: Path) -> None:
    selection = ("tests/test_it.py", "-k", "flaky")
    (checkout / "tests/flaky.jsonl").write_text(json.dumps({"test": "tests/test_it.py::test_flaky"}) + "\n")
    code, lines = run(checkout, *selection)
    assert code == 0
    assert lines[-1] == "flaky: tests/test_it.py::test_flaky, first failure: AssertionError: fails the first time"
    (checkout / "tests/flaky").unlink()
    records = [json.loads(line)["test"] for line in (checkout / "tests/flaky.jsonl").read_text().splitlines()]
    assert records == ["tests/test_it.py::test_flaky"] * 2
    code, lines = run(checkout, *selection)
    assert code == 1
    assert lines[-1].startswith("flaky too often: tests/test_it.py::test_flaky, ")


def test_a_crash_is_repeated_and_a_skipped_repetition_is_a_failure(checkout: Path) -> None:
    code, lines = run(checkout, "tests/test_it.py", "-k", "not flaky")
    assert code == 1
    assert lines[-2].startswith("failed twice: tests/test_it.py::test_skipped, ")
    assert lines[-1] == "flaky: tests/test_it.py::test_crash, first failure: its worker died by SIGKILL"


def test_a_lab_starts_once_and_is_taken_down_on_an_interrupt(checkout: Path) -> None:
    (checkout / "tests/conftest.py").write_text(LAB)
    folder = checkout / "tests/slurm"
    folder.mkdir()
    for number in range(3):
        (folder / f"test_{number}.py").write_text("def test_lab(lab):\n    pass\n")
    code, lines = run(checkout, "tests/slurm", "tests/test_it.py::test_long", workers=2)
    assert code == 0, lines
    assert (checkout / "labs").read_text() == "up down "
    (folder / "test_2.py").write_text(INTERRUPT)
    code, lines = run(checkout, "tests/slurm", workers=2)
    assert code == pytest.ExitCode.INTERRUPTED, lines
    assert (checkout / "labs").read_text() == "up down up down "


def test_nothing_is_repeated_where_a_module_cannot_be_imported(checkout: Path) -> None:
    (checkout / "tests/test_it.py").write_text("import nothing_of_that_name")
    code, lines = run(checkout, "tests/test_it.py")
    assert code != 0
    assert any("nothing_of_that_name" in line for line in lines)

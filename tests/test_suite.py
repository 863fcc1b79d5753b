"""The suite's own promises: a flaky test is named, a failure is a failure, and no test is forgotten."""

import ast
import json
import re
from pathlib import Path

import pytest

from tests import suite
from tests.suite import PARTS, ROOT, STARTED, Suite, claimed, files_of

FLAKY = """
from pathlib import Path

def test_it():
    seen = Path(__file__).with_name("seen")
    first, _ = not seen.exists(), seen.touch()
    assert not first, "the first time it fails"
"""


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "await_quiet", lambda: None)
    monkeypatch.setattr(suite, "LOOK_SECONDS", 0.02)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # half of what each pytest takes to start


def run(folder: Path, text: str, **options: bool) -> int:
    (folder / "tests").mkdir(exist_ok=True)
    (folder / "tests/test_one.py").write_text(text)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = soak\n")
    return Suite(["tests/test_one.py"], soak=options.get("soak", False), at_once=1, root=folder).run()


def test_who_passes_alone_is_flaky_and_named_at_the_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, FLAKY) == 0
    last = capfd.readouterr().out.splitlines()[-1]
    assert last.startswith("flaky: tests/test_one.py::test_it, first failure: AssertionError: the first time it fails")
    evidence = tmp_path / "build/tests/test/test_one.py-test_it.txt"
    assert str(evidence.relative_to(tmp_path)) in last
    assert "the first time it fails" in evidence.read_text()
    assert json.loads((tmp_path / "tests/flaky.jsonl").read_text())["test"] == "tests/test_one.py::test_it"
    assert "flaky" in (tmp_path / "build/tests/test.md").read_text().lower()


def test_the_third_time_on_record_it_is_a_failure(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    codes = []
    for _ in range(3):
        codes.append(run(tmp_path, FLAKY))
        (tmp_path / "tests/seen").unlink()
    assert codes == [0, 0, 1]
    assert "flaky too often" in capfd.readouterr().out


def test_two_failures_are_a_failure(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "def test_it():\n    assert 1 == 2\n\ndef test_other():\n    pass\n") == 1
    out = capfd.readouterr().out
    assert "failed: tests/test_one.py::test_it, twice: assert 1 == 2" in out.splitlines()[-1]
    assert "1 of 2 tests" in out


def test_who_is_skipped_the_second_time_has_not_passed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    skips = FLAKY.replace("first, _ =", "import pytest\n    first, _ =").replace("    assert first", "")
    skips += "    pytest.skip('what it broke is not there any more')\n"
    assert run(tmp_path, skips) == 1
    out = capfd.readouterr().out
    assert "twice" in out.splitlines()[-1]
    assert "what it broke is not there any more" in out


def test_a_suite_beside_it_writes_elsewhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with claimed(tmp_path / "build/tests/test") as folder:
        record = folder / "these.jsonl"
        record.write_text("its failures")
        assert run(tmp_path, "def test_it():\n    pass\n") == 0
        assert record.read_text() == "its failures"
    assert "build/tests/test-2.md" in capfd.readouterr().out
    assert run(tmp_path, "def test_it():\n    pass\n") == 0
    assert "build/tests/test.md" in capfd.readouterr().out


def test_a_pytest_that_dies_forgets_no_test(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dies = "import os\nfrom pathlib import Path\n\ndef test_it():\n    seen = Path(__file__).with_name('seen')\n"
    dies += "    if not seen.exists():\n        seen.touch()\n        os._exit(9)\n\ndef test_after():\n    pass\n"
    assert run(tmp_path, dies) == 0
    out = capfd.readouterr().out
    assert out.count("\nflaky: ") == 2
    assert "its pytest ended before this test did" in out


def test_what_cannot_be_collected_is_a_failure(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "import nothing_of_that_name\n") == 1
    assert "nothing_of_that_name" in capfd.readouterr().out


def test_soak_is_the_rest(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = "import pytest\n\n@pytest.mark.soak\ndef test_long():\n    pass\n\ndef test_short():\n    assert False\n"
    assert run(tmp_path, text, soak=True) == 0
    assert "1 of 1 tests" in capfd.readouterr().out


def test_every_test_file_is_in_one_part() -> None:
    assert sorted(STARTED) == sorted(PARTS)
    assert all(files_of(part) for part in PARTS), "pytest without a path collects everything"
    listed = [name for part in PARTS for name in files_of(part)]
    found = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py")}
    assert sorted(listed) == sorted(found)


def names_in_readme() -> set[str]:
    """The tests that tests/README.md names, without their parameters."""
    text = (ROOT / "tests/README.md").read_text()
    return {name.partition("[")[0] for name in re.findall(r"`([a-z0-9_/]+\.py::[^`]+)`", text)}


def functions() -> dict[str, bool]:
    """Every test function by file and name, and whether it, its module or a parameter of it is marked as soak."""
    found = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        tree = ast.parse(path.read_text())
        whole = any(
            isinstance(n, ast.Assign) and "mark.soak" in ast.unparse(n) and "pytestmark" in ast.unparse(n) for n in tree.body
        )
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                marked = any("mark.soak" in ast.unparse(each) for each in node.decorator_list)
                found[f"{path.relative_to(ROOT / 'tests')}::{node.name}"] = whole or marked
    return found


def test_the_readme_says_of_everything_that_is_soak_what_protects_its_promise() -> None:
    known, told = functions(), names_in_readme()
    assert [name for name, soak in known.items() if soak and name not in told] == []
    assert sorted(told - known.keys()) == [], "it names tests that are not there"

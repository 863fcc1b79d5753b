"""`why` for more than 60 failing programs, each really run."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from ropewalk.cluster.backends.base import BackendState
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import write_json
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.runs.program.last_words import innermost_frame, last_words
from ropewalk.jobs.runs.program.verdict import how_it_ended
from ropewalk.jobs.runs.show.diagnose import diagnose
from ropewalk.jobs.runs.show.known_errors.table import SUBJECTS, known_error, known_errors
from tests.jobs.runs.failing import causes_of

PLANTED = yaml.safe_load((Path(__file__).parents[2] / "fakes/programs/planted.yaml").read_text())
UNSEEN = yaml.safe_load((Path(__file__).parents[2] / "fakes/programs/unseen.yaml").read_text())


@pytest.fixture(scope="module")
def causes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run all programs; return the cause that the run of each would give."""
    programs = {f"planted {planted['name']}": planted["program"] for planted in PLANTED}
    programs |= {f"unseen {name}": each["program"] for name, each in UNSEEN.items() if "program" in each}
    return causes_of(programs, tmp_path_factory.mktemp("failing"))


def test_the_planted_failures_are_told(causes: dict[str, str]) -> None:
    wrong = []
    for planted in PLANTED:
        cause = causes[f"planted {planted['name']}"]
        error = known_error(cause)
        if error is None or planted["says"] not in error.meaning:
            wrong.append(f"{planted['name']}: {cause[:150]} -> {error.meaning if error else None}")
    assert len(PLANTED) >= 60
    assert not wrong, "\n".join(wrong)


def test_each_row_says_what_to_do_and_is_the_one_for_its_own_message() -> None:
    rows = known_errors()
    assert [row.pattern for row in rows if not row.meaning or not row.remedy] == []
    results = [(row.pattern, known_error(row.example)) for row in rows if row.example]
    assert [(item, other) for item, other in results if other is None or other.pattern != item] == [], (
        "another row stands before it"
    )


def test_no_narrow_row_is_found_in_what_programs_ordinarily_say() -> None:
    text = (Path(__file__).parents[2] / "fakes/programs/ordinary.txt").read_text()
    patterns = [re.compile(row.pattern) for row in known_errors(SUBJECTS)]
    assert [(line, pattern.pattern) for line in text.splitlines() for pattern in patterns if pattern.search(line)] == []


def test_narrow_rows_and_deep_causes_match_first() -> None:
    def meaning(text: str) -> str:
        error = known_error(f"rank 0: ProgramFailedError: the program ended with exit code 1: {text}")
        return error.meaning if error else ""

    assert "GPU ran out of memory" in meaning("RuntimeError: it failed; caused by: torch.OutOfMemoryError: CUDA out of memory.")
    assert "has no entry of that name" in meaning("RuntimeError: it failed; caused by: KeyError: 'rope'")
    assert "raised an error of its own" in meaning("mylab.BadSplitError: no such split")
    assert "printed no message" in meaning("it printed nothing")


def run_shell(line: str, folder: Path) -> str:
    """Run a line of bash that fails; what its run would give as the cause."""
    pipe, errors = subprocess.PIPE, subprocess.STDOUT
    done = subprocess.run(["bash", "-c", line], cwd=folder, stdout=pipe, stderr=errors, text=True, check=False)
    return f"the program {how_it_ended(done.returncode)}: {last_words(done.stdout)}"


def why(cause: str, root: Path) -> str:
    """Output of `ropewalk why` for a run whose program ended with this cause."""
    run = RunDir.create("unseen", {"job": "command", "cluster": "local", "config": {}, "resources": {"nodes": 1}}, root)
    number = run.begin_attempt()
    error = {"who": "rank 0", "type": "ProgramFailedError", "message": cause, "exit_code": 1, "time": 1.0}
    write_json(run.attempt_dir(number) / "errors/rank-0.json", error)
    whole = f"rank 0: ProgramFailedError: {cause}"
    run.write_outcome(number, Outcome(state=RunState.FAILED, exit_code=1, cause=whole, ended=1.0))
    result = diagnose(run, BackendState(state=RunState.FAILED, reason=whole))
    return f"{result.cause.removesuffix(whole)}\n{result.remedy}"


def test_failures_of_somebody_who_has_not_seen_the_rules_are_told(tmp_path: Path, causes: dict[str, str]) -> None:
    wrong = []
    for name, program in UNSEEN.items():
        cause = run_shell(program["shell"], tmp_path) if "shell" in program else causes[f"unseen {name}"]
        output = why(cause, tmp_path / "runs")
        if not all(re.search(program[key], output, re.IGNORECASE) for key in ("cause", "remedy")):
            wrong.append(f"{name}: {cause[:200]} -> {output}")
    assert len(UNSEEN) >= 30
    assert not wrong, "\n".join(wrong)


OWN = """Traceback (most recent call last):
  File "train.py", line 3, in main
    fail()
ValueError: the batch is empty
"""


@pytest.mark.parametrize(
    "behind",
    [
        "",
        "E1127 14:53:02.1 9 torch/distributed/elastic/multiprocessing/api.py:869] failed (exitcode: 1)\n"
        'Traceback (most recent call last):\n  File "run.py", line 1, in main\n'
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:\n============\n",
        'Fatal Python error: Aborted\n\nCurrent thread 0x1 (most recent call first):\n  File "ranks.py", line 237 in run_rank\n',
    ],
    ids=["nothing", "torchrun", "fault handler"],
)
def test_the_last_words_are_the_programs_own(behind: str) -> None:
    assert last_words(OWN + behind) == "ValueError: the batch is empty"
    assert innermost_frame(OWN + behind) == ['File "train.py", line 3, in main', "fail()"]
    assert last_words("one\n=====\n") == "one"
    assert last_words("SyntaxError: invalid syntax") == "SyntaxError: invalid syntax"
    assert innermost_frame("one") == []

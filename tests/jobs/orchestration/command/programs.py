"""Programs that tests start, and what became of them."""

import sys
from collections.abc import Callable
from pathlib import Path

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import Outcome
from ropewalk.jobs.runs.show.status import final_outcome
from tests.patience import Patience, until

ROOT = Path(__file__).resolve().parents[4]
TRAINING = str(ROOT / "tests/fakes/training_program.py")
Start = Callable[..., RunDir]


def script(folder: Path, text: str) -> list[str]:
    path = folder / "program.py"
    path.write_text(text)
    return [sys.executable, str(path)]


def ended(run: RunDir) -> Outcome:
    until(lambda: final_outcome(run) is not None, Patience.RUN)
    outcome = final_outcome(run)
    assert outcome is not None
    return outcome

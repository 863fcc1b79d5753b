"""Programs that tests start, and what became of them."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch

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


def undisturbed(steps: int, ranks: int) -> tuple[str, float]:
    """The last words and the last loss of the training program, computed without it."""
    weight = torch.zeros(16)
    for step in range(steps):
        xs = [torch.randn(8, 16, generator=torch.Generator().manual_seed(step * ranks + rank)) for rank in range(ranks)]
        errors = [x @ weight - x.sum(1) for x in xs]
        gradients = [x.T @ error / 4 for x, error in zip(xs, errors, strict=True)]
        weight = weight - 0.01 * sum(gradients[1:], gradients[0]) / ranks
    return f"final {weight.double().sum().item():.17g}", sum(error.pow(2).mean().item() for error in errors) / ranks

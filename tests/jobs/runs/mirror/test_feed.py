"""The numbered lines of a run: the same again from the journal, each step's metrics once though steps are done again."""

from pathlib import Path

from ropewalk.cluster.run.files import append_lines
from ropewalk.jobs.results.metrics import metric_line
from ropewalk.jobs.runs.mirror.feed import Feed, Kind, Line
from tests.jobs.runs.mirror.test_relay import make_run


def train(step: int, position: int | None = None) -> dict[str, float]:
    return metric_line(1, step, {"train/loss": 1 / step, "train/position": 8 * step if position is None else position})


def told(lines: list[Line]) -> list[tuple[str, int]]:
    """Lines sent to W&B without repetitions: kind and step."""
    return [
        ("validation" if "validation/loss" in line.values else line.kind.value, line.step) for line in lines if not line.again
    ]


def test_a_step_that_is_done_again_after_a_resume_is_told_once(tmp_path: Path) -> None:
    run = make_run(tmp_path, "resumed")
    feed, results = Feed(run, run.wandb / "f.jsonl"), []
    validation = metric_line(1, 4, {"validation/loss": 1.0})
    for lines in (
        [train(step) for step in range(1, 5)],  # killed before step 4 was validated
        [train(3), train(4), validation, train(5)],
        [train(3), train(4), validation, train(5), train(6)],  # killed again
    ):
        append_lines(run.metrics, lines)
        results += feed.look()
    once = [*(("metrics", step) for step in range(1, 5)), ("validation", 4), ("metrics", 5), ("metrics", 6)]
    assert told(results) == once
    assert [line.number for line in results] == list(range(13))
    again = Feed(run, run.wandb / "f.jsonl")  # another process
    assert list(again.again(0)) == results
    assert list(again.again(6)) == results[6:]
    append_lines(run.metrics, [train(6), train(7)])
    assert told(again.look()) == [("metrics", 7)]


def test_steps_after_a_rollback_have_other_samples_and_are_told(tmp_path: Path) -> None:
    run = make_run(tmp_path, "back")
    feed = Feed(run, run.wandb / "f.jsonl")
    validation = metric_line(1, 4, {"validation/loss": 1.0})
    append_lines(run.metrics, [*map(train, range(1, 5)), validation, train(5), train(4, 56), validation, train(5, 64)])
    steps = [("metrics", 1), ("metrics", 2), ("metrics", 3), ("metrics", 4), ("validation", 4), ("metrics", 5)]
    assert told(feed.look()) == [*steps, ("metrics", 4), ("validation", 4), ("metrics", 5)]


def test_lines_of_a_program_are_never_taken_for_repeated(tmp_path: Path) -> None:
    """Nobody knows why its steps go back: it may count them anew in each epoch."""
    run = make_run(tmp_path, "program")
    append_lines(run.metrics, [metric_line(1, step, {"loss": 1.0}) for step in (1, 2, 1, 2, 2)])
    feed = Feed(run, run.wandb / "f.jsonl")
    assert told(feed.look()) == [("metrics", step) for step in (1, 2, 1, 2, 2)]
    append_lines(run.path / "histograms.jsonl", [{"step": 1, "time": 1.0, "edges": [0, 1], "counts": {}}])
    assert [line.kind for line in feed.look()] == [Kind.HISTOGRAMS]

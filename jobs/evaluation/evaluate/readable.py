"""Tables and pictures of an evaluation for trackers: scores, generations, worst items."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ropewalk.datapipe.loader.loader import TokenLoader
from ropewalk.jobs.evaluation.evaluate.run_tasks import Evaluated
from ropewalk.jobs.results.gate import NORMAL_95
from ropewalk.jobs.results.readable import write_picture, write_table
from ropewalk.jobs.runs.show.plots import TRAIN, as_png, dress

WORST = 20  # sequences, and items of each task


def write_readable(run: Path, results: Mapping[str, Any], evaluated: Evaluated | None) -> None:
    """Write generations, the worst items of each task, and a picture of all scores."""
    if samples := results.get("generations"):
        texts = [(results.get("model_step"), sample["prompt"], sample["text"]) for sample in samples]
        write_table(run, "generations", ("step", "prompt", "text"), texts)
    if evaluated is None:
        return
    scores = [
        (task, metric, score["value"], score["standard_error"], score["n"])
        for task, metrics in results.get("scores", {}).items()
        for metric, score in metrics.items()
    ]
    write_table(run, "scores", ("task", "metric", "value", "standard error", "n"), scores, figures=True)
    rows = [row for task in evaluated.tasks.values() for row in _worst_items(task)]
    write_table(run, "worst-items", ("task", "item", "metric", "value", "prompt", "target", "answers"), rows)
    write_picture(run, "scores", as_png(lambda axis: _draw_scores(axis, evaluated), (6.4, 1 + 0.3 * len(evaluated.tasks))))


def write_worst_sequences(run: Path, losses: Sequence[float], loader: TokenLoader, tokenizer: Any) -> None:
    """Write the held-out sequences with the highest loss as text, decoded by `tokenizer`."""
    order = sorted(range(len(losses)), key=lambda number: -losses[number])[:WORST]
    texts = [tokenizer.decode(loader.in_order(number, number + 1)[0].tolist()) for number in order]
    rows = [(number, losses[number], text) for number, text in zip(order, texts, strict=True)]
    write_table(run, "worst-documents", ("sequence", "loss, nats per token", "text"), rows)


def _worst_items(task: Any) -> list[Sequence[Any]]:
    metric, better = next(iter(task.higher_is_better.items()), (None, True))
    scored = [line for line in task.items if isinstance(line["values"].get(metric), (int, float))]
    scored.sort(key=lambda line: line["values"][metric] if better else -line["values"][metric])
    rows = [(line["task"], line["item"], metric, line["values"][metric]) for line in scored[:WORST]]
    return [(*row, str(line["prompt"]), line["target"], line["answers"]) for row, line in zip(rows, scored, strict=False)]


def _draw_scores(axis: Any, evaluated: Evaluated) -> None:
    """Draw the first metric of each task with its interval."""
    names = []
    for row, (name, task) in enumerate(list(evaluated.tasks.items())[::-1]):
        metric, score = next(iter(task.scores.items()))
        names.append(f"{name} ({metric})")
        if score.standard_error is not None:
            reach = NORMAL_95 * score.standard_error
            axis.plot([score.value - reach, score.value + reach], [row, row], color=TRAIN, alpha=0.5, linewidth=2)
        axis.plot([score.value], [row], "o", color=TRAIN, markersize=5)
    axis.set_yticks(range(len(names)), names)
    dress(axis, "scores, 95% interval")

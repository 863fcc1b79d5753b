"""The commands `compare` (two evaluated models) and `drift` (live prompts with training data or earlier prompts)."""

from pathlib import Path
from typing import Annotated

import typer

from ropewalk.jobs.cli import complete
from ropewalk.jobs.cli.complete import AsJson
from ropewalk.jobs.cli.json_output import print_json

_SIDE = "an evaluate run, an evaluated model (run or directory), or a group: its name, or runs separated by commas"
_SAMPLE = (
    "a serving run (RUN@7d: its last seven days, RUN@14d..7d: the seven days before), a file or glob of texts or conversations, "
    "a data set, or a training run"
)


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help=_SIDE, autocompletion=complete.runs)],
    second: Annotated[str, typer.Argument(metavar="B", help="the model to compare A with", autocompletion=complete.runs)],
    seeds: Annotated[bool, typer.Option("--seeds", help="A and B are groups of runs; pair them by seed")] = False,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", help="HTML page to write; unset: comparison-B.html beside A's report"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two evaluated models item by item: difference, confidence interval, smallest detectable difference."""
    from ropewalk.jobs.evaluation.evaluate.comparison_report import COLUMNS, row, write_comparison
    from ropewalk.jobs.runs.models.comparison import compare as compare_sides
    from ropewalk.jobs.runs.models.evaluations import FOLDER, find_evaluations
    from ropewalk.jobs.runs.show.tables import console, table
    from ropewalk.jobs.runs.show.view import user_path

    sides = find_evaluations(first), find_evaluations(second)
    comparison = compare_sides(*sides, names=(first, second), seeds=seeds)
    side_a, side_b = comparison.pairs[0]
    page = write_comparison(comparison, report or side_a.run.path / FOLDER / f"comparison-{side_b.run.id}.html")
    if as_json:
        print_json({**comparison.plain(), "report": str(page)})
        return
    metrics_table = table(*(name.upper() for name in COLUMNS))
    for metric in comparison.metrics:
        metrics_table.add_row(metric.task, metric.metric, *row(comparison, metric))
    console().print(metrics_table)
    for metric in comparison.metrics:
        console().print(comparison.describe(metric), markup=False, soft_wrap=True)
    if len(comparison.metrics) > 1:
        console().print(f"By chance, one in twenty of {len(comparison.metrics)} comparisons shows a difference.", style="dim")
    console().print(f"report with examples: {user_path(page)}", markup=False, soft_wrap=True)


def drift(
    current: Annotated[str, typer.Argument(metavar="CURRENT", help=_SAMPLE, autocompletion=complete.runs)],
    reference: Annotated[str, typer.Argument(metavar="REFERENCE", help="the baseline: any of the same kinds")],
    *,
    texts: Annotated[int, typer.Option("--texts", help="number of texts per side")] = 1000,
    alpha: Annotated[float, typer.Option("--alpha", help="allowed false alarm rate over all tests together")] = 0.05,
    rounds: Annotated[
        int, typer.Option("--rounds", help="splits of the reference used to measure the false alarm rate; 0: do not measure")
    ] = 100,
    planted: Annotated[
        str | None, typer.Option("--planted", help="texts planted to measure the smallest detectable drift; unset: one topic")
    ] = None,
    probes: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            "--probes", metavar="NOW BEFORE", help="scores of the same probe set: JSON lines {item, value}, or evaluate runs"
        ),
    ] = None,
    embedding: Annotated[
        str | None, typer.Option("--embedding", help="directory of a model2vec model; unset: hashed n-grams")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="random seed")] = 0,
    report: Annotated[Path, typer.Option("--report", metavar="FOLDER", help="directory for drift.html and drift.json")] = Path(
        "drift"
    ),
    as_json: AsJson = False,
) -> None:
    """Test whether live prompts differ from training data or earlier prompts: length, language, embedding, classifier."""
    from pydantic import ValidationError

    from ropewalk.cluster.errors import ConfigError
    from ropewalk.jobs.serving.drift.config import DriftConfig
    from ropewalk.jobs.serving.drift.detect import detect
    from ropewalk.jobs.serving.drift.page import write_report
    from ropewalk.jobs.serving.drift.quality import compare_probes, read_probes
    from ropewalk.jobs.serving.drift.sample import POOL_FACTOR
    from ropewalk.jobs.serving.drift.sources import open_sample

    try:
        config = DriftConfig(alpha=alpha, texts=texts, rounds=rounds, embedding=embedding, seed=seed)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"--{first['loc'][0]}: {first['input']!r}: {first['msg']}") from None
    scored = compare_probes(*(read_probes(path) for path in probes), seed=seed) if probes else None
    now = open_sample(current, limit=texts, seed=seed)
    before = open_sample(reference, limit=POOL_FACTOR * texts, seed=seed)
    planted_sample = open_sample(planted, limit=texts, seed=seed) if planted else None
    result = detect(now, before, config, planted=planted_sample)
    report_path = write_report(result, report, probes=scored)
    if as_json:
        print_json({**result.plain(), "probes": scored.plain() if scored else None, "report": str(report_path)})
        return
    _print(result, scored, report_path)


def _print(result: object, scored: object, report_path: Path) -> None:
    from ropewalk.jobs.results.compare import Comparison
    from ropewalk.jobs.runs.show.tables import console, table
    from ropewalk.jobs.serving.drift.detect import Drift
    from ropewalk.jobs.serving.drift.page import test_rows

    assert isinstance(result, Drift)
    tests = table("TEST", "EFFECT", ">P", ">P, CORRECTED", ">PERMUTATIONS")
    for row in test_rows(result):
        tests.add_row(*row)
    out = console()
    out.print(tests)
    out.print(result.summary, markup=False, soft_wrap=True)
    if result.ratings is not None:
        ratings = result.ratings
        shares = f"{ratings.current:.1%}, before {ratings.reference:.1%}"
        line = f"Good ratings: {shares} (difference {ratings.difference:+.1%}, p {ratings.p_value:.3g})."
        out.print(line, markup=False, soft_wrap=True)
    if isinstance(scored, Comparison):
        shown = {"first": "better", "second": "worse", None: "no significant difference"}[scored.better]
        out.print(f"Probe set: {scored.difference:+.4g} over {scored.n} questions, {shown}.", markup=False, soft_wrap=True)
    out.print(f"report: {report_path}", markup=False, soft_wrap=True)

"""The command about what changed in what is asked: drift."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from ropewalk.jobs.cli import complete
from ropewalk.jobs.cli.arguments import AsJson

_SAMPLE = (
    "a serving run (RUN, RUN@7d: the last seven days, RUN@14d..7d: the seven before), a file or glob of texts or conversations, "
    "a data set, or a run that was trained"
)


def drift(
    current: Annotated[str, typer.Argument(metavar="CURRENT", help=_SAMPLE, autocompletion=complete.runs)],
    reference: Annotated[str, typer.Argument(metavar="REFERENCE", help="what CURRENT is compared with: any of these too")],
    *,
    texts: Annotated[int, typer.Option("--texts", help="texts of each side that are compared")] = 1000,
    alpha: Annotated[
        float, typer.Option("--alpha", help="the rate of false alarms that is allowed, of all tests together")
    ] = 0.05,
    rounds: Annotated[
        int, typer.Option("--rounds", help="halves of the reference by which false alarms are measured; 0: faster, not measured")
    ] = 100,
    planted: Annotated[
        str | None, typer.Option("--planted", help="texts by which the smallest share that is found is measured; unset: a topic")
    ] = None,
    probes: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            "--probes", metavar="NOW BEFORE", help="scores of one probe set: lines of {item, value}, or runs of evaluate"
        ),
    ] = None,
    embedding: Annotated[
        str | None, typer.Option("--embedding", help="a static model of model2vec; unset: hashed n-grams")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="what is drawn by chance is drawn by this")] = 0,
    report: Annotated[
        Path, typer.Option("--report", metavar="FOLDER", help="where drift.html and drift.json are written")
    ] = Path("drift"),
    as_json: AsJson = False,
) -> None:
    """Compare what is asked with what was learnt, or was asked before: length, language, embedding, classifier; and quality."""
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
    strange = open_sample(planted, limit=texts, seed=seed) if planted else None
    found = detect(now, before, config, planted=strange)
    written = write_report(found, report, probes=scored)
    if as_json:
        plain = {**found.plain(), "probes": scored.plain() if scored else None, "report": str(written)}
        sys.stdout.write(f"{json.dumps(plain, default=str)}\n")
        return
    _print(found, scored, written)


def _print(found: object, scored: object, written: Path) -> None:
    from ropewalk.jobs.results.compare import Comparison
    from ropewalk.jobs.runs.show.tables import console, table
    from ropewalk.jobs.serving.drift.detect import Drift
    from ropewalk.jobs.serving.drift.page import test_rows

    assert isinstance(found, Drift)
    made = table("TEST", "EFFECT", ">P", ">P, CORRECTED", ">PERMUTATIONS")
    for row in test_rows(found):
        made.add_row(*row)
    out = console()
    out.print(made)
    out.print(found.summary, markup=False, soft_wrap=True)
    if found.ratings is not None:
        one = found.ratings
        words = (
            f"Good ratings: {one.current:.1%}, were {one.reference:.1%} (difference {one.difference:+.1%}, p {one.p_value:.3g})."
        )
        out.print(words, markup=False, soft_wrap=True)
    if isinstance(scored, Comparison):
        shown = {"first": "better", "second": "worse", None: "not shown to differ"}[scored.better]
        out.print(f"Probe set: {scored.difference:+.4g} over {scored.n} questions, {shown}.", markup=False, soft_wrap=True)
    out.print(f"report: {written}", markup=False, soft_wrap=True)

"""Pictures of a sweep: axes, importance beside chance, PNGs, and one page that needs nothing else."""

import base64
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from ropewalk.cluster.run.files import read_json, write_json
from ropewalk.jobs.orchestration.sweep.report.importance import importance_of
from ropewalk.jobs.orchestration.sweep.report.outlook import expected_best
from ropewalk.jobs.orchestration.sweep.report.plot_axes import axes_of
from ropewalk.jobs.orchestration.sweep.report.plots import draw_curves, draw_history
from ropewalk.jobs.orchestration.sweep.report.results import TrialResult, read_sweep
from ropewalk.jobs.orchestration.sweep.report.tables import summary_rows
from ropewalk.jobs.orchestration.sweep.simulate.picture import write_picture
from tests.fakes.sweep import SPACE, make_sweep
from tests.jobs.shell import Shell

PNG = b"\x89PNG\r\n\x1a\n"


def test_axes_follow_the_space(tmp_path: Path) -> None:
    axes = {axis.key: axis for axis in axes_of(SPACE, read_sweep(make_sweep(tmp_path, 8)).trials)}
    assert list(axes) == list(SPACE)
    rate = axes["optim.lr"]
    assert rate.log
    assert rate.position(1e-4) == 0
    assert rate.position(10**-2.5) == pytest.approx(0.5)
    assert [word for _, word in rate.ticks()] == ["1e-4", "0.001", "0.01", "0.1"]
    assert not axes["optim.weight_decay"].log
    assert [word for _, word in axes["optim.warmup_steps"].ticks()] == ["0", "10", "20", "30"]
    assert axes["optim.schedule"].categories == ["cosine", "constant", "wsd"]
    assert axes["optim.schedule"].position("constant") == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("item", "values", "kind"),
    [
        ({"choice": [[0.9, 0.95], [0.9, 0.99]]}, [[0.9, 0.99]], ["[0.9, 0.95]", "[0.9, 0.99]"]),
        ({"choice": [None, 3.0]}, [None], ["null", "3"]),
        ({"grid": [16, 8]}, [8], ["8", "16"]),
        ({"choice": [0.0, 0.1]}, [0.08], (0.0, 0.1)),  # a population leaves the choice
        ({"loguniform": [0.01, 0.1]}, [0.2], (0.01, 0.2)),  # a population leaves the range
        ({"quniform": [0.0, 1.0, 0.1], "uniform": None, "when": {}}, [0.5], (0.0, 1.0)),  # as run.yaml holds it
        ({"made_up": 1}, ["a", "b"], ["a", "b"]),  # a kind that this version does not know
        (None, [1.0, 5.0], (1.0, 5.0)),
    ],
)
def test_every_kind_of_parameter_has_an_axis(item: Any, values: list[Any], kind: Any) -> None:
    trials = [TrialResult(trial=k, parameters={"key": value}) for k, value in enumerate(values)]
    (axis,) = axes_of({} if item is None else {"key": item}, trials)
    assert (axis.categories if axis.categories else (axis.low, axis.high)) == kind
    assert all(0 <= axis.position(value) <= 1 for value in values)
    assert axis.ticks()


def test_a_parameter_that_never_varied_has_none() -> None:
    assert axes_of({}, [TrialResult(trial=0, parameters={"key": 1.0}), TrialResult(trial=1, parameters={"key": 1.0})]) == []


def test_importance_stands_beside_chance(tmp_path: Path) -> None:
    result = importance_of(read_sweep(make_sweep(tmp_path, 60)))
    assert sum(result.shares.values()) == pytest.approx(1)
    assert next(iter(result.shares)) == "optim.lr"
    assert result.shares["optim.lr"] > result.chance["optim.lr"]
    assert result.shares["optim.weight_decay"] < result.chance["optim.weight_decay"]
    assert (result.n, result.caution) == (59, "")  # all but the one that failed
    few = importance_of(read_sweep(make_sweep(tmp_path, 12, name="few")))
    assert few.caution == "only 11 trials: interpret with caution"
    none = importance_of(read_sweep(make_sweep(tmp_path, 4, name="none")))
    assert (none.shares, none.caution) == ({}, "4 of 6 trials: too few for importances")


class Page(HTMLParser):
    """Everything that a page would fetch, its pictures, its rows of trials."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.rows = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in {"src", "srcset", "data"}]
        self.rows += tag == "tr" and "class" in dict(attrs)


def test_pictures_and_a_page_that_needs_nothing_else(shell: Shell) -> None:
    sweep = make_sweep(shell.home / "runs", 7)
    path = sweep.path / "trials/0000.json"
    write_json(path, {**(read_json(path) or {}), "state": "FAILED", "cause": "<b>& unescaped"})
    written = [Path(line) for line in shell("show", sweep.id, "--plot", "out/found.png").splitlines()]
    names = ["found.png", "found-parallel.png", "found-history.png", "found-curves.png", "found-importance.png", "found.html"]
    assert [path.name for path in written] == names
    assert all(path.read_bytes().startswith(PNG) for path in written[:-1])
    text = written[-1].read_text()
    page = Page(text)
    assert [source.partition(",")[0] for source in page.sources] == ["data:image/png;base64"] * 3
    assert text.count("too few for importances") == 1, "a sentence instead of an empty picture"
    assert base64.b64decode(page.sources[0].partition(",")[2]) == written[1].read_bytes()
    assert not re.search(r"https?:|url\(|@import|<link", text)
    assert page.rows == 7
    assert f"<title>{sweep.id} · Sweep</title>" in text
    summary = " ".join(shell("show", sweep.id).split())
    assert all(" ".join(value.split()) in summary for _, value in summary_rows(read_sweep(sweep))), "the numbers of the terminal"
    assert all(value in text for _, value in summary_rows(read_sweep(sweep)))
    assert "&lt;b&gt;&amp; unescaped" in text


def test_by_default_they_lie_in_the_run(shell: Shell) -> None:
    sweep = make_sweep(shell.home / "runs", 2, stops=False)
    assert shell("show", sweep.id, "--plot").splitlines()[-1] == str(sweep.path / "sweep.html")


def test_curves_show_how_many_were_stopped_at_each_rung(tmp_path: Path) -> None:
    results = read_sweep(make_sweep(tmp_path))
    axis = Figure().subplots()
    draw_curves(axis, results)
    stopped = Counter(trial.stopped_at for trial in results.trials if trial.stopped_at)
    labels = [f"{count} of {sum(t.steps >= step for t in results.trials)}\nstopped" for step, count in sorted(stopped.items())]
    assert stopped
    assert [text.get_text() for text in axis.texts] == labels


def test_the_history_shows_the_metric_to_expect_with_its_interval(tmp_path: Path) -> None:
    results = read_sweep(make_sweep(tmp_path, stops=False))
    axis, expected = Figure().subplots(), expected_best(results)
    draw_history(axis, results)
    assert expected is not None
    (bar,) = axis.containers
    assert bar.lines[0].get_ydata() == [expected.metric]
    low, high = axis.get_ylim()
    assert expected.error is not None
    assert low < expected.metric - 2 * expected.error
    assert high > expected.metric + 2 * expected.error


def test_a_simulation_is_drawn_over_cost_beside_random_draws(tmp_path: Path) -> None:
    values = {"by_budget": {"8": 0.2, "16": 0.1}, "errors_by_budget": {"8": 0.02, "16": 0.01}, "n": 5}
    result = {"data": "code", "scheduler": "asha", "searches": [{"search": name, **values} for name in ("gp", "random")]}
    write_picture(result, tmp_path / "out/regret.png")
    assert (tmp_path / "out/regret.png").read_bytes().startswith(PNG)

"""`ropewalk ui`: nobody else gets in, and every figure is that of `ps`, `show`, `why` and `cost`."""

import http.client
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from ropewalk.cluster.local_access import LocalAccess
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.results.metrics import curves
from tests.jobs.runs.ui.serving import client, make_run, served
from tests.jobs.shell import Shell
from tests.patience import ended

NUM_STEPS, PEAK = 5000, 1234


@pytest.fixture
def runs(shell: Shell) -> list[RunDir]:
    losses = [5.0 / step + (90 if step == PEAK else 0) for step in range(1, NUM_STEPS + 1)]
    root = shell.home / "runs"
    first = make_run(root, "first", losses, optim={"lr": 0.1}, seed=1)
    return [first, make_run(root, "second", [3.0, 2.0], optim={"lr": 0.2}, seed=1, ended=False)]


@pytest.fixture
def access() -> Iterator[LocalAccess]:
    with served() as opened:
        yield opened


@pytest.fixture
def page(runs: list[RunDir], access: LocalAccess) -> Iterator[httpx.Client]:
    with client(access) as opened:
        yield opened


def test_only_the_link_opens_it_and_only_once(runs: list[RunDir], access: LocalAccess) -> None:
    link = access.link()
    with httpx.Client(base_url=access.address) as stranger, client(access) as opened:
        assert stranger.get(link).status_code == 403, "a newer link was made"
        for path in ("/", "/ui.js", "/api/runs", f"/api/runs/{runs[0].id}", "/?token=x"):
            answer = stranger.get(path)
            assert (answer.status_code, runs[0].id in answer.text) == (403, False)
        for answer in (opened.get("/"), opened.get("/api/runs"), opened.get("/nothing"), opened.post("/api/runs")):
            assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
            assert answer.headers["cache-control"] == "no-store"
        assert opened.post("/api/runs").status_code == 405
        assert opened.get("/api/runs", headers={"Host": "evil.example"}).status_code == 421
    other = http.client.HTTPConnection(access.address.removeprefix("http://"))
    other.request("GET", "/api/runs", headers={"Cookie": f"{access.cookie}=guess; a[=]"})
    assert other.getresponse().status == 403
    other.close()


def test_rows_are_those_of_ps(shell: Shell, page: httpx.Client, runs: list[RunDir]) -> None:
    (runs[0].path.parent / "damaged").mkdir()
    (runs[0].path.parent / "damaged/run.yaml").write_text("job: [")
    rows = page.get("/api/runs").json()
    printed = json.loads(shell("ps", "--all", "--json"))
    assert [{key: row[key] for key in row.keys() - {"sparkline"}} for row in reversed(rows)] == printed
    assert [row["run"] for row in rows] == [runs[1].id, runs[0].id]
    assert rows[0]["sparkline"] == [3.0, 2.0]
    assert 10 < len(rows[1]["sparkline"]) < 50
    assert rows[1]["sparkline"][-1] == 5.0 / NUM_STEPS


def test_figures_of_a_run_are_those_of_the_commands(shell: Shell, page: httpx.Client, runs: list[RunDir]) -> None:
    for run in runs:
        answer = page.get(f"/api/runs/{run.id}").json()
        shown, cost = json.loads(shell("show", run.id, "--json")), json.loads(shell("cost", run.id, "--json"))
        for key in ("state", "metrics", "results", "config", "attempt_list"):
            assert answer[key] == shown[key]
        assert answer["goodput"]["seconds"].keys() == shown["goodput"]["seconds"].keys()
        assert answer["cost"]["rows"][0].keys() == cost["rows"][0].keys()
        diagnosis = json.loads(shell("why", run.id, "--json"))
        assert answer["why"] == {key: diagnosis[key] for key in answer["why"]}
        (hang,) = answer["hangs"]
        assert "rank 0 in all_reduce (x.py:3)" in hang["text"]
        assert hang["stacks"] == "rank 0: in all_reduce\n"
        assert [table["name"] for table in answer["tables"]] == ["samples"]
        assert answer["curve_names"] == ["train/loss"]


def test_curves_are_thinned_and_keep_their_peaks(page: httpx.Client, runs: list[RunDir]) -> None:
    parameters = [*(("run", run.id) for run in runs), ("key", "train/loss"), ("key", "validation/loss")]
    long, short = page.get("/api/curves", params=parameters).json()
    steps, values = curves(runs[0])["train/loss"]
    assert (long["points"], len(steps)) == (NUM_STEPS, NUM_STEPS)
    assert len(long["steps"]) < 700
    assert (long["steps"][0], long["steps"][-1]) == (1, NUM_STEPS)
    assert max(long["values"]) == values[PEAK - 1] > 90
    assert all(values[step - 1] == value for step, value in zip(long["steps"], long["values"], strict=True))
    assert (short["run"], short["steps"], short["values"]) == (runs[1].id, [1, 2], [3.0, 2.0])


def test_configurations_differ_where_they_do(page: httpx.Client, runs: list[RunDir]) -> None:
    answer = page.get("/api/comparison", params=[("run", run.id) for run in runs]).json()
    assert {row["key"]: row["values"] for row in answer["differences"]} == {"steps": [NUM_STEPS, 2], "optim.lr": [0.1, 0.2]}
    assert answer["curve_names"] == ["train/loss"]


@pytest.mark.parametrize(("path", "error"), [("/api/runs/nobody", "no run 'nobody'"), ("/api/curves", "name 1 to 100")])
def test_a_mistake_has_a_message(page: httpx.Client, path: str, error: str) -> None:
    answer = page.get(path)
    assert answer.status_code == 400
    assert error in answer.json()["error"]


def test_the_command_serves_until_it_is_asked_to_end(shell: Shell) -> None:
    with subprocess.Popen([sys.executable, "-m", "ropewalk.jobs.cli", "ui"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        link = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{43}", link)
        taken = shell.mistake("ui", "--port", link.partition("/?")[0].rpartition(":")[2])
        assert "--port 0 takes a free one" in taken
        with httpx.Client(follow_redirects=True) as opened:
            assert "<title>Runs" in opened.get(link).text
        process.send_signal(signal.SIGTERM)
        assert ended(process) == 0

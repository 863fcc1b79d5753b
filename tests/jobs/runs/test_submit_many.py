"""Many runs in one submission: which they are, what one request costs, and a queue of them on this machine."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ropewalk.cluster.backends.local.processes import record_supervisor
from ropewalk.cluster.errors import AlreadyRunningError, ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.record import dump_record, read_record
from ropewalk.jobs.runs.show.tables import LONG_LIST
from ropewalk.jobs.runs.submit.combinations import combinations
from ropewalk.jobs.runs.submit.resume import resume
from tests.jobs.shell import Shell, pretrain

ROOT = Path(__file__).parents[3]

# --- which runs


def test_combinations_are_the_product_in_order() -> None:
    assert combinations([]) == [()]
    assert combinations(["seed=8..10"]) == [("seed=8",), ("seed=9",), ("seed=10",)]
    assert combinations(["a.x=1e-3,1e-4", "b=[yes, 'no']"]) == [
        ("a.x=0.001", "b=true"),
        ("a.x=0.001", 'b="no"'),
        ("a.x=0.0001", "b=true"),
        ("a.x=0.0001", 'b="no"'),
    ]
    assert combinations(["betas=[0.9, 0.95],[0.8, 0.9]"]) == [("betas=[0.9, 0.95]",), ("betas=[0.8, 0.9]",)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["seed"], "write KEY=VALUES"),
        (["seed="], "write KEY=VALUES"),
        (["seed=[]"], "no values"),
        (["seed=9..1"], "write 1..9"),
        (["seed=1,[2"], "not YAML"),
        (["seed=1,2", "seed=3"], "twice"),
        (["seed=1..100000000000"], "100,000,000,000 values"),
        (["seed=1..1000", "steps=1..1000"], "1,000,000 runs"),
        (["resources.nodes=1..4"], "share their resources"),
        (["--seed=1,2"], "without dashes"),
    ],
)
def test_combinations_that_cannot_be(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        combinations(arguments)


def test_a_run_a_combination_created_and_submitted_together(shell: Shell) -> None:
    arguments = ("--each", "seed=3,5", "--each", "optim.lr=1e-3,1e-4", "--at-once", "2", "--after")
    first = shell("submit", *pretrain("--on", "good")).strip()
    ids = shell("submit", *pretrain("--on", "slow", *arguments, first)).splitlines()
    records = [RunDir(shell.home / "runs" / i).record for i in ids]
    created = [(record["config"]["seed"], record["config"]["optim"]["lr"]) for record in records]
    assert created == [(3, 1e-3), (3, 1e-4), (5, 1e-3), (5, 1e-4)]
    assert shell.asked("submit_many") == [{"verb": "submit_many", "runs": ids, "after": [first], "at_once": 2}]
    rows = json.loads(shell("ps", "--json"))
    assert [row["run"] for row in rows] == ids
    assert rows[2]["handle"] == "fake:1_2"
    assert len(shell.asked("states")) == 1


def test_the_condition_of_a_dependency_reaches_the_backend(shell: Shell) -> None:
    first = shell("submit", *pretrain("--on", "good")).strip()
    for text in (f"any:{first[:-1]}", "failed:latest", f"ok:{first}"):
        shell("submit", *pretrain("--on", "slow", "--after", text))
    submitted = [request["after"] for request in shell.asked("submit")][1:]
    assert submitted[0] == [f"any:{first}"]
    assert submitted[1][0].startswith("failed:pretrain-")
    assert submitted[2] == [first]
    assert "no run 'maybe:" in shell.mistake("submit", *pretrain("--on", "slow", "--after", f"maybe:{first}"))


def test_a_mistake_creates_nothing(shell: Shell) -> None:
    assert "seed" in shell.mistake("submit", *pretrain("--on", "slow", "--each", "seed=1,2,x"))
    assert "sed" in shell.mistake("submit", *pretrain("--on", "slow", "--each", "sed=1,2"))
    assert "nowhere does not exist" in shell.mistake(
        "submit", "pretrain", "steps=3", "--on", "slow", "--each", "data=data,nowhere"
    )
    assert not (shell.home / "runs").exists()


def test_a_dry_run_shows_one_and_counts_the_rest(shell: Shell) -> None:
    lines = shell("submit", *pretrain("--on", "slow", "--each", "seed=1..1000", "--script")).splitlines()
    assert (lines[0], lines[-1]) == ("#!/bin/bash", "# and 999 more")
    assert not (shell.home / "runs").exists()


def test_a_refusal_leaves_no_run(shell: Shell) -> None:
    shell("submit", *pretrain("--on", "closed", "--each", "seed=1..3"), expect=1)
    assert shell.err == "error: the queue is closed until Monday\n"
    assert not RunDir.all(shell.home / "runs")
    assert "3 finished" not in shell("ps")


# --- what it costs


class Calls:
    """Counts of system calls while the body runs."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.on = False
        sys.addaudithook(self._note)  # stays for ever, so it is switched

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and event in {"open", "os.mkdir", "subprocess.Popen", "os.listdir", "os.scandir"}:
            name = os.path.basename(str(arguments[0])) if event == "open" else event
            self.counts[name] = self.counts.get(name, 0) + 1

    def of(self, body: Callable[[], Any]) -> dict[str, int]:
        self.counts, self.on = {}, True
        try:
            body()
        finally:
            self.on = False
        return self.counts


def test_the_cost_of_a_run_among_many(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls()
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # what a disk takes is not ours
    shell("submit", *pretrain("--on", "shipping"))  # writes the copy of the code, which the others find
    few, many = (
        calls.of(lambda n=n: shell("submit", *pretrain("--on", "shipping", "--each", f"seed=1..{n}"))) for n in (10, 310)
    )
    assert (many["os.mkdir"] - few["os.mkdir"]) / 300 < 3.1, "an id that is taken costs one more"
    assert many.get("subprocess.Popen", 0) <= 8, "git and versions are asked once for all, or not at all"
    assert (sum(many.values()) - sum(few.values())) / 300 <= 13, "two of them where the checkout has a diff to keep"
    before = time.process_time()
    listing = calls.of(lambda: shell("ps"))
    assert time.process_time() - before < 3, "a few milliseconds a run even on a slow machine"
    assert len(shell.out.splitlines()) > 321
    assert listing["run.yaml"] == 321
    assert listing["attempt.json"] == 321
    assert sum(listing.values()) / 321 <= 12


def test_a_long_list_is_a_line_a_run(shell: Shell) -> None:
    ids = shell("submit", *pretrain("--on", "slow", "--each", f"seed=0..{LONG_LIST}")).splitlines()
    lines = shell("ps").splitlines()
    assert lines[0].split()[:3] == ["RUN", "JOB", "STATE"]
    assert [line.split()[0] for line in lines[1:]] == ids
    assert {tuple(line.split()[1:3]) for line in lines[1:]} == {("pretrain", "RUNNING")}


# --- run.yaml

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=200),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["steps", "nodes", "name", "data"])


@settings(max_examples=60, deadline=None)
@given(
    records=st.lists(
        st.fixed_dictionaries(
            {
                "job": st.text(max_size=9),
                "config": st.dictionaries(KEYS, PLAIN),
                "resources": st.dictionaries(KEYS, PLAIN),
                "cluster": PLAIN,
                "created": st.floats(0, 1e10),
                "code": PLAIN,
            }
        ),
        min_size=1,
        max_size=3,
    )
)
def test_a_record_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]]) -> None:
    path, texts = tmp_path_factory.getbasetemp() / "record.yaml", dict[Any, str]()
    for record in records:
        path.write_text(dump_record("x", record, texts))
        assert read_record(path) == {"run": "x", **record}


@pytest.mark.parametrize(
    "text",
    ['{"job": "a", "config": {"steps": 3}}', "config: {\n  steps: 3\n}\njob: a\n", "# by hand\njob: a\nconfig:\n    steps: 3\n"],
)
def test_a_record_that_a_person_wrote_is_read_too(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    assert RunDir(tmp_path).record == {"job": "a", "config": {"steps": 3}}


def test_a_diff_lies_beside_the_record(tmp_path: Path) -> None:
    code = {"commit": "c0ffee", "diff": "+line\n" * 100_000}
    runs = RunDir.create_all(["a", "b"], [{"job": "a", "code": code}, {"job": "b"}], tmp_path)
    assert [run.record.get("code") for run in runs] == [RunDir(run.path).record.get("code") for run in runs]
    assert runs[0].record["code"] == {"commit": "c0ffee"}
    assert (runs[0].path / "code.diff").read_text() == code["diff"]
    assert not (runs[1].path / "code.diff").exists()


def test_a_resume_that_is_refused_forgets_no_scale(tmp_path: Path) -> None:
    record = {"job": "toy", "config": {}, "engine": "ranks", "resources": {"nodes": "1..4"}, "cluster": "local"}
    run = RunDir.create("x", record, tmp_path)
    run.begin_attempt(opened_by="submission")
    record_supervisor(run, os.getpid())
    run.request_nodes(2)
    with pytest.raises(AlreadyRunningError):
        resume(run)
    assert run.wanted_nodes == 2

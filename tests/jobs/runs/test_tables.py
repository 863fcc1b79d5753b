"""Tables for people: what is in a run's files stands in them as it is."""

from pathlib import Path

import pytest

from cluster.run.directory import RunDir
from cluster.spec import Outcome, RunState
from jobs.runs.show import page
from jobs.runs.status import states, summary
from jobs.runs.tables import console, runs_table


@pytest.mark.parametrize(
    "cause", ["[/pytorch/gloo/pair.cc:553] closed by peer [127.0.0.1]:3928", "shape [batch, seq] is not [b]", "no :key: in [/x]"]
)
def test_texts_of_programs_are_no_markup(tmp_path: Path, cause: str) -> None:
    record = {"job": "pretrain", "config": {}, "cluster": "local", "engine": "ranks", "created": 1.0, "resources": {"nodes": 1}}
    run = RunDir.create("x", record, tmp_path)
    outcome = Outcome(state=RunState.FAILED, exit_code=1, cause=cause, started=1.0, ended=2.0)
    run.write_outcome(run.begin_attempt(resources={"nodes": 1}, handle="local:1"), outcome)
    for printed in (page(run), runs_table([summary(run, states([run])[run.id])])):
        out = console()
        with out.capture() as capture:
            out.print(printed)
        assert cause in capture.get()

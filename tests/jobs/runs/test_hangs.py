"""Reports of hung ranks in `why` and to followers of a run."""

from pathlib import Path
from typing import Any

from ropewalk.cluster.backends.base import BackendState
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import write_json
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.runs.show.diagnose import diagnose
from ropewalk.jobs.runs.show.events import format_event
from ropewalk.jobs.runs.show.hangs import describe_locations, join_hangs

REDUCE = "all_reduce in sum (sharding/group.py:40)"


def rank(number: int, where: str, phase: str = "step", state: str = "sleeping") -> dict[str, Any]:
    return {"rank": number, "where": where, "phase": phase, "state": state}


def test_why_groups_the_ranks_of_all_nodes_by_where_they_stood(tmp_path: Path) -> None:
    run = RunDir.create("x", {"job": "pretrain", "config": {}, "resources": {"nodes": 2}}, tmp_path)
    run.begin_attempt()
    stacks = "attempts/0001/stacks/group-000002"
    common = {"attempt": 1, "group": 2, "stacks": stacks}
    loader = "get in prefetch (datapipe/loader/prefetch.py:54), its prefetch: read in read (datapipe/loader/loader.py:88)"
    run.event("ranks_hung", **common, node=0, step=40, seconds=2.0, ranks=[rank(0, REDUCE), rank(1, loader, "data")])
    run.event("ranks_hung", **common, node=1, step=41, seconds=2.5, ranks=[rank(2, REDUCE), rank(3, REDUCE)])
    run.event("group_formed", group=3, nodes=2)
    run.event("ranks_hung", **{**common, "group": 3}, node=0, step=9, seconds=1.0, ranks=[rank(0, REDUCE)])
    result = diagnose(run, BackendState(state=RunState.RUNNING))
    first, formed, second = (line.split("  ", 1)[1] for line in result.evidence)
    assert first == (
        f"replaced ranks without progress for 2.5 s at step 41: 3 ranks in {REDUCE}, rank 1 in {loader}, data;"
        f" all stacks: {stacks}"
    )
    assert formed == "group 3 formed on 2 nodes"
    assert second.startswith("replaced ranks without progress for 1.0 s at step 9: rank 0 in")


def test_why_names_slow_ranks_until_the_next_step(tmp_path: Path) -> None:
    run = RunDir.create("x", {"job": "pretrain", "config": {}, "resources": {"nodes": 2}}, tmp_path)
    attempt = run.begin_attempt()
    slow = {**rank(1, "read (user/data.py:7)", "data"), "activity": "computes"}
    run.event("ranks_slow", attempt=attempt, group=1, node=1, step=40, seconds=15.2, ranks=[slow], allowed_seconds=300.0)
    for done, suffix in ((40, ", but on node 1 rank 1 computes in read (user/data.py:7), data"), (41, "")):
        write_json(run.progress, {"stage": "train", "done": done, "total": 50, "unit": "steps"})
        result = diagnose(run, BackendState(state=RunState.RUNNING))
        assert result.cause == f"It is running: train {done} of 50 steps{suffix}."
        assert result.evidence[0].split("  ", 1)[1] == (
            "no progress for 15 s at step 40, but on node 1 rank 1 computes in read (user/data.py:7), data;"
            " nothing is replaced before 300 s"
        )


def test_one_that_was_stopped_is_said_to_be() -> None:
    message = describe_locations(
        [rank(0, REDUCE), rank(1, "update (jobs/training/loop/update/step.py:84)", state="stopped"), rank(2, "x", "checkpoint")]
    )
    assert message == (
        f"rank 0 in {REDUCE}, rank 1 stopped by a signal, in update (jobs/training/loop/update/step.py:84),"
        " rank 2 in x, checkpoint"
    )


def test_joining_leaves_the_events_as_they_are() -> None:
    events = [
        {"event": "ranks_hung", "attempt": 1, "group": 1, "step": 1, "seconds": 1.0, "ranks": [rank(0, "x")], "stacks": "s"}
    ]
    joined = join_hangs([*events, *events])
    assert [rank["rank"] for rank in joined[0]["ranks"]] == [0, 0]
    assert len(events[0]["ranks"]) == 1
    assert "rank 0 in x" in str(format_event({**events[0], "time": 0.0}))

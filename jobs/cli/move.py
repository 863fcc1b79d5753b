"""The command `move`, and steps of commands that work on two clusters, each of which runs on one of them."""

import json
import sys
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any

import typer

from ropewalk.jobs.cli import complete
from ropewalk.jobs.cli.complete import AsJson, Cluster, NewKeys, RunRef
from ropewalk.jobs.cli.json_output import print_json


def move(
    run_ref: RunRef,
    overrides: NewKeys = None,
    *,
    on: Annotated[str, typer.Option("--on", metavar="CLUSTER", help="cluster to move to", autocompletion=complete.clusters)],
    as_json: AsJson = False,
) -> None:
    """Move a running run to another cluster: it saves and stops, what is missing there is copied, and it continues there."""
    from ropewalk.cluster.text import format_bytes
    from ropewalk.jobs.cli.moving import Move

    moving = Move.of(run_ref, on)
    try:
        moved = moving.execute(overrides or [])
    except KeyboardInterrupt:
        sys.stderr.write(
            f"\nthe move is not finished: give the command again, or with --on {moving.source} to let the run stay\n"
        )
        raise
    if as_json:
        print_json(moved)
        return
    print(f"{moved['run']} has moved from {moved['source']} to {on}: attempt {moved['attempt']} is submitted there")
    print(f"{format_bytes(moved['bytes'])} were copied; `ropewalk show {moved['run']}` follows it there")


class Step(StrEnum):
    """Steps of a move, and of runs that are on several clusters until one of them starts."""

    DESCRIBE = "describe"
    STOP = "stop"
    LEAVE = "leave"
    STAY = "stay"
    SEND = "send"
    CHECK = "check"
    MISSING = "missing"
    RECEIVE = "receive"
    ARRIVE = "arrive"
    START_LOCKS = "start-locks"


def cluster_step(
    step: Annotated[Step, typer.Argument(help="the step")],
    moving: Annotated[str, typer.Argument(metavar="RUN", help="the run")],
    on: Cluster = "local",
) -> None:
    """Take a step on one of several clusters: a line of JSON on the standard input, and one as the answer."""
    request = json.loads(sys.stdin.buffer.readline())
    if (answer := _answer(step, moving, on, request)) is not None:
        print_json(answer)


def _answer(step: Step, moving: str, cluster: str, request: dict[str, Any]) -> dict[str, Any] | None:
    from ropewalk.jobs.runs.move import source
    from ropewalk.jobs.runs.move.target import Target
    from ropewalk.jobs.runs.show.status import find_run

    if step is Step.START_LOCKS:
        from ropewalk.jobs.runs.move.start_locks import start_locks

        return start_locks(cluster, **request)
    if step is Step.SEND:
        source.files_of(find_run(moving)).pass_on({"do": "send", **request}, sys.stdin.buffer, sys.stdout.buffer)
    elif step is Step.RECEIVE:
        Target(cluster, moving).files.pass_on({"do": "receive"}, sys.stdin.buffer, sys.stdout.buffer)
    elif step in (Step.DESCRIBE, Step.STOP, Step.LEAVE, Step.STAY):
        actions: dict[Step, Callable[..., dict[str, Any]]]
        actions = {Step.DESCRIBE: source.describe, Step.STOP: source.stop, Step.LEAVE: source.leave, Step.STAY: source.stay}
        return actions[step](find_run(moving), **request)
    elif step is Step.MISSING:
        return Target(cluster, moving).files.ask("missing", **request)
    else:
        target = Target(cluster, moving)
        return target.check(**request) if step is Step.CHECK else target.arrive(**request)
    return None

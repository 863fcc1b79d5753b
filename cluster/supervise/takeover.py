"""Attempts that go on when their supervisor dies with a node: the agents stay, and another supervisor takes over."""

from ropewalk.cluster.fresh_reads import read_afresh
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import parse_lines
from ropewalk.cluster.run.names import AGENTS
from ropewalk.cluster.spec import Engine


def outlives_nodes(run: RunDir, attempt: int) -> bool:
    """Return True if an attempt goes on when it loses a node."""
    return run.resources(attempt).replaces_nodes and Engine(run.record["engine"]) is Engine.RANKS


def agent_starts(run: RunDir, attempt: int) -> list[tuple[int, float]]:
    """Return the node and the time of each start of an agent in an attempt."""
    agents = parse_lines(read_afresh(run.attempt_dir(attempt) / AGENTS))[0]
    return [(int(agent["node"]), float(agent["started"])) for agent in agents]


def surviving_nodes(run: RunDir, attempt: int, alive: int) -> int:
    """Return how many nodes go on in an attempt whose supervisor died with a node; 0 if another attempt has to begin.

    `alive`: nodes that can do so; events do not tell, since a supervisor that is cut off takes the others for lost. Groups that
    formed since the last checkpoint count as restarts: a run whose nodes die again and again comes to an end.
    """
    nodes = min(alive, len(dict(agent_starts(run, attempt))))
    if run.outcome(attempt) is not None or not outlives_nodes(run, attempt) or nodes < run.resources(attempt).nodes.least:
        return 0
    restarts = 0
    for event in run.read_events(afresh=True):
        if event["event"] == "checkpoint":
            restarts = 0
        elif event["event"] == "group_formed" and event.get("attempt") == attempt:
            restarts += 1
    return nodes if restarts <= run.retries.disturbances else 0

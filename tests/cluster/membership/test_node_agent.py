"""Decisions of an agent about the ranks of its node."""

import pytest

from ropewalk.cluster.errors import EXIT_DONE, EXIT_LOST_PEER, EXIT_REQUEUE
from ropewalk.cluster.membership.node_agent import LEAVE_SECONDS, NodeAgent, Order, Start


@pytest.fixture
def agent() -> NodeAgent:
    agent = NodeAgent(ranks=2, elastic=False)
    assert agent.joined() == [Order.BE_READY]
    form = {"say": "form", "group": 1, "node_rank": 0, "nodes": 2, "address": "a", "port": 1}
    assert agent.take(form, 0.0) == [Start(1, 0, 2, "a", 1)]
    assert agent.running == {0, 1}
    return agent


def end(seconds: float) -> dict[str, object]:
    return {"say": "end", "group": 1, "seconds": seconds}


def test_ranks_leave_a_group_that_has_ended(agent: NodeAgent) -> None:
    assert agent.take(end(0.0), 5.0) == [Order.RELEASE]
    assert agent.released({0, 1}, 5.0) == []
    assert agent.ended({0: EXIT_LOST_PEER}) == [], "it was told to, so that it is no disturbance"
    assert agent.tick(5.1) == []
    assert agent.ended({1: EXIT_LOST_PEER}) == [Order.BE_READY]
    assert agent.tick(100.0) == []


def test_a_rank_that_does_not_leave_is_killed(agent: NodeAgent) -> None:
    agent.take(end(0.0), 5.0)
    agent.released({0, 1}, 5.0)
    agent.ended({0: EXIT_LOST_PEER})
    assert agent.tick(5.0 + LEAVE_SECONDS - 0.01) == []
    assert agent.tick(5.0 + LEAVE_SECONDS) == [Order.KILL, Order.BE_READY]


def test_ranks_that_cannot_leave_are_dead_at_once(agent: NodeAgent) -> None:
    assert agent.take(end(0.0), 5.0) == [Order.RELEASE]
    assert agent.released(set(), 5.0) == [Order.BE_READY]


@pytest.mark.parametrize(("code", "nothing"), [(EXIT_LOST_PEER, True), (-9, True), (EXIT_REQUEUE, False), (EXIT_DONE, False)])
def test_a_node_whose_ranks_are_lost_has_nothing_to_save(agent: NodeAgent, code: int, nothing: bool) -> None:
    """A stop reaches it, and the coordinator may be gone."""
    agent.ended({0: EXIT_LOST_PEER})
    assert not agent.has_nothing_to_save, "a rank runs"
    agent.ended({1: code})
    assert agent.has_nothing_to_save == nothing


def test_a_rank_that_left_by_itself_is_reported(agent: NodeAgent) -> None:
    lost = {1: EXIT_LOST_PEER}
    assert agent.ended(lost) == [{"say": "ended", "group": 1, "codes": lost}]
    assert agent.take(end(1.0), 5.0) == []
    assert agent.tick(5.5) == []
    assert agent.tick(6.0) == [Order.RELEASE]
    assert agent.released({0}, 6.0) == []
    assert agent.ended({0: -6}) == [{"say": "ended", "group": 1, "codes": {0: -6}}, Order.BE_READY], "it crashed meanwhile"

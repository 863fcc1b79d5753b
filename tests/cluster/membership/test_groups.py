"""Decisions about groups of ranks: who forms one, what ends it, and what follows."""

import signal
from typing import Any

import pytest

from ropewalk.cluster.errors import EXIT_FAILED, EXIT_LOST_PEER, EXIT_NEVER_RETRY, EXIT_REQUEUE
from ropewalk.cluster.membership.decisions import Decision, Failed, RecordEvent, Reserve, Tell
from ropewalk.cluster.membership.groups import CAUSE_SECONDS, PATIENCE_SECONDS, SAVE_SECONDS, SETTLE_SECONDS, Groups, Phase
from ropewalk.cluster.membership.members import Died, Joined, Member, Received

KILLED = -int(signal.SIGKILL)


class Nodes:
    """Groups of nodes with two ranks each, and what was decided last."""

    def __init__(self, least: int, most: int, **settings: Any) -> None:
        self.groups = Groups(1, least, most, 2, **{"expected": most, **settings})
        self.members = [Member(f"session {node}", node, (0, 0), 0.0) for node in range(4)]
        self.now = 0.0
        self.decisions: list[Decision] = []
        self.decide(self.groups.tick(self.now))

    def decide(self, decisions: list[Decision]) -> None:
        """Take decisions, and reserve the number of the next group at once."""
        self.decisions = []
        while decisions:
            decision = decisions.pop(0)
            if isinstance(decision, Reserve):
                decisions += self.groups.reserved(decision.number + 1, self.now)
            else:
                self.decisions.append(decision)

    def say(self, sender: int, what: str, **fields: Any) -> None:
        message = {"say": what, "group": self.groups.number, **fields}
        self.decide(self.groups.handle(Received(self.members[sender], message), self.now))

    def be_ready(self, *nodes: int, group: int | None = None) -> None:
        for node in nodes:
            number = self.groups.number if group is None else group
            self.say(node, "ready", node=node, address=f"10.0.0.{node}", port=29500, group=number)

    def end(self, node: int, *codes: int) -> None:
        """Report the end of the node's ranks, the first ones of as many as there are codes."""
        self.say(node, "ended", codes={str(2 * node + rank): code for rank, code in enumerate(codes)})

    def die(self, node: int, *, silent: bool = False) -> None:
        self.decide(self.groups.handle(Died(self.members[node], silent=silent), self.now))

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.decide(self.groups.tick(self.now))

    def judge(self, code: int | None) -> None:
        self.decide(self.groups.judge(code, self.now))

    def told(self, what: str) -> dict[int, dict[str, Any]]:
        """Return the messages of a kind in the last decisions, by node."""
        tells = [each for each in self.decisions if isinstance(each, Tell) and each.message["say"] == what]
        return {self.members.index(each.member): each.message for each in tells}


@pytest.fixture
def nodes() -> Nodes:
    """Two nodes in group 1, of two to three."""
    nodes = Nodes(2, 3)
    nodes.be_ready(1, 0)
    nodes.wait(SETTLE_SECONDS)
    assert nodes.told("form")[1] == {"say": "form", "group": 1, "node_rank": 1, "nodes": 2, "address": "10.0.0.0", "port": 29500}
    return nodes


def test_a_killed_rank_ends_the_ranks_of_all_nodes_at_once_and_a_new_group_forms(nodes: Nodes) -> None:
    nodes.end(1, KILLED)
    assert nodes.decisions[0] == RecordEvent("rank_lost", {"group": 1, "node": 1, "rank": 2, "exit_code": KILLED})
    assert {node: message["seconds"] for node, message in nodes.told("end").items()} == {0: 0.0, 1: 0.0}
    nodes.be_ready(0)
    assert nodes.decisions == []
    nodes.be_ready(1)
    assert nodes.decisions == [Failed(1, {2: KILLED})]
    nodes.judge(None)
    assert {message["group"] for message in nodes.told("form").values()} == {2}, "and nobody waits for more nodes"


def test_a_spare_node_takes_the_place_of_a_dead_one_at_once() -> None:
    nodes = Nodes(2, 2, expected=3)
    nodes.be_ready(2, 0)
    assert nodes.decisions == [], "the third node is expected soon"
    nodes.be_ready(1)
    assert RecordEvent("group_formed", {"group": 1, "nodes": 2, "spare": 1}) in nodes.decisions
    assert {node: message["node_rank"] for node, message in nodes.told("form").items()} == {0: 0, 1: 1}
    nodes.die(0)
    nodes.be_ready(1)
    assert RecordEvent("group_formed", {"group": 2, "nodes": 2}) in nodes.decisions
    assert {node: message["node_rank"] for node, message in nodes.told("form").items()} == {2: 0, 1: 1}
    nodes.be_ready(3)
    nodes.end(1, KILLED)
    nodes.be_ready(1, 2)
    nodes.judge(None)
    assert RecordEvent("group_formed", {"group": 3, "nodes": 2, "spare": 1}) in nodes.decisions
    assert {node: message["node_rank"] for node, message in nodes.told("form").items()} == {2: 0, 1: 1}, "no process is replaced"


def test_a_rank_that_lost_a_peer_is_not_the_cause(nodes: Nodes) -> None:
    nodes.end(0, EXIT_LOST_PEER)
    assert nodes.told("end")[1]["seconds"] == CAUSE_SECONDS, "the cause may be about to record its error"
    nodes.end(1, EXIT_FAILED)
    assert nodes.told("end")[1]["seconds"] == 0.0
    nodes.be_ready(0, 1)
    assert nodes.decisions == [Failed(1, {0: EXIT_LOST_PEER, 2: EXIT_FAILED})]
    nodes.judge(EXIT_FAILED)
    assert {message["code"] for message in nodes.told("over").values()} == {EXIT_FAILED}
    nodes.be_ready(2)
    assert nodes.told("over")[2]["code"] == EXIT_FAILED, "whoever comes too late"


def test_an_error_that_no_retry_mends_ends_all_agents_at_once(nodes: Nodes) -> None:
    nodes.end(1, EXIT_NEVER_RETRY)
    assert {message["code"] for message in nodes.told("over").values()} == {EXIT_NEVER_RETRY}


def test_groups_that_fail_again_and_again_spend_the_restarts() -> None:
    nodes = Nodes(1, 1, restarts_allowed=1)
    nodes.be_ready(0)
    for _ in range(2):
        nodes.end(0, KILLED, KILLED)
        nodes.be_ready(0)
        nodes.judge(None)
    assert nodes.told("over")[0]["code"] == EXIT_LOST_PEER


def test_a_group_that_has_saved_has_all_its_restarts_again() -> None:
    nodes = Nodes(1, 1, restarts_allowed=0)
    for _ in range(3):
        nodes.be_ready(0)
        nodes.wait(SETTLE_SECONDS)
        nodes.end(0, EXIT_REQUEUE, EXIT_REQUEUE)
    nodes.be_ready(0)
    assert "form" in nodes.decisions[1].message.values()  # type: ignore[union-attr]


def test_a_dead_node_ends_the_group_and_the_others_form_one_if_they_are_enough(nodes: Nodes) -> None:
    nodes.die(0, silent=True)
    assert nodes.decisions[0] == RecordEvent("node_silent", {"group": 1, "node": 0})
    assert list(nodes.told("end")) == [1]
    nodes.be_ready(1)
    assert nodes.groups.phase is Phase.FORMING, "one is not enough"
    nodes.be_ready(2, group=0)
    assert {message["group"] for message in nodes.told("form").values()} == {2}


def test_a_node_that_has_saved_leaves_without_harm_and_has_the_others_save(nodes: Nodes) -> None:
    nodes.end(0, EXIT_REQUEUE)
    assert 1 in nodes.told("save"), "its ranks may exchange nothing with those of node 0"
    nodes.say(0, "ended", codes={"1": EXIT_REQUEUE})
    assert nodes.decisions == [], "once is enough"
    nodes.say(0, "leave")
    assert nodes.decisions == []
    nodes.end(1, EXIT_REQUEUE, EXIT_REQUEUE)
    assert nodes.groups.phase is Phase.FORMING


def test_all_exit_when_all_ranks_have_finished(nodes: Nodes) -> None:
    nodes.end(0, 0, 0)
    nodes.end(1, 0)
    assert not nodes.decisions
    nodes.say(1, "ended", codes={"3": 0})
    assert {message["code"] for message in nodes.told("over").values()} == {0}


def test_a_node_that_joins_has_the_others_save(nodes: Nodes) -> None:
    nodes.be_ready(2, group=0)
    assert sorted(nodes.told("save")) == [0, 1]
    nodes.wait(SAVE_SECONDS)
    assert sorted(nodes.told("end")) == [0, 1], "whoever does not save is killed"
    nodes.be_ready(0, 1)
    assert {message["nodes"] for message in nodes.told("form").values()} == {3}


def test_a_node_that_cannot_kill_its_ranks_is_not_waited_for_for_ever(nodes: Nodes) -> None:
    nodes.be_ready(2, group=0)
    nodes.end(0, KILLED)
    nodes.be_ready(0)
    nodes.wait(PATIENCE_SECONDS)
    nodes.judge(None)
    nodes.wait(PATIENCE_SECONDS)
    assert sorted(nodes.told("form")) == [0, 2]


def vote(nodes: Nodes, node: int, *votes: str) -> None:
    nodes.say(node, "votes", **{vote: vote in votes for vote in ("silent", "cause", "waiter", "spare")})


def test_nodes_hang_together_or_not_at_all(nodes: Nodes) -> None:
    vote(nodes, 0, "silent", "cause")
    vote(nodes, 1, "waiter")
    vote(nodes, 0, "cause")
    vote(nodes, 1, "silent", "waiter")
    assert nodes.groups.phase is Phase.WORKING, "the ranks of the first went on"
    vote(nodes, 0, "silent", "cause")
    assert sorted(nodes.told("record")) == [0, 1]
    nodes.say(0, "recorded")
    assert not nodes.decisions
    nodes.say(1, "recorded")
    assert sorted(nodes.told("end")) == [0, 1]
    nodes.be_ready(0, 1)
    assert nodes.groups.number == 2, "a hang is no bug to judge"


@pytest.mark.parametrize("part", ["cause", "waiter"])
def test_nodes_need_a_cause_and_a_rank_that_waits_for_it(nodes: Nodes, part: str) -> None:
    for node in (0, 1):
        vote(nodes, node, "silent", part)
    assert nodes.groups.phase is Phase.WORKING
    vote(nodes, 1, "silent", "cause", "waiter")
    assert nodes.groups.phase is Phase.HUNG


@pytest.fixture
def spare() -> Nodes:
    """Three nodes in group 1, of which the last has no work."""
    nodes = Nodes(1, 3)
    nodes.be_ready(0, 1, 2)
    vote(nodes, 2, "silent", "spare")
    return nodes


def test_a_group_goes_on_without_a_spare_node_and_takes_it_in_again(spare: Nodes) -> None:
    spare.die(2)
    assert spare.decisions == []
    assert spare.groups.phase is Phase.WORKING
    spare.be_ready(3, group=0)
    assert sorted(spare.told("save")) == [0, 1]


def test_a_spare_rank_that_is_killed_ends_no_other(spare: Nodes) -> None:
    spare.end(2, KILLED)
    assert sorted(spare.told("end")) == [2]
    spare.be_ready(2)
    assert sorted(spare.told("save")) == [0, 1]


def test_a_node_without_work_hides_no_hang_and_is_not_waited_for(spare: Nodes) -> None:
    vote(spare, 0, "silent", "cause")
    vote(spare, 1, "silent", "waiter")
    assert spare.groups.phase is Phase.HUNG
    spare.say(0, "recorded")
    spare.say(1, "recorded")
    assert sorted(spare.told("end")) == [0, 1, 2]


def test_a_stopped_rank_ends_the_group(nodes: Nodes) -> None:
    nodes.say(1, "recorded")
    assert sorted(nodes.told("end")) == [0, 1]


def test_messages_about_an_earlier_group_change_nothing(nodes: Nodes) -> None:
    nodes.end(1, KILLED)
    nodes.be_ready(0, 1)
    nodes.judge(None)
    nodes.be_ready(0, group=1)
    nodes.say(1, "ended", codes={"2": KILLED}, group=1)
    assert nodes.decisions == []
    assert nodes.groups.phase is Phase.WORKING


def test_a_group_number_that_an_agent_has_seen_is_never_given_again() -> None:
    nodes = Nodes(1, 1)
    nodes.members[0].fence = (1, 7)
    nodes.groups.handle(Joined(nodes.members[0]), 0.0)
    nodes.be_ready(0)
    nodes.wait(SETTLE_SECONDS)
    assert nodes.groups.number == 8


def test_an_agent_that_comes_from_another_coordinator_leaves_the_group_as_it_is(nodes: Nodes) -> None:
    """The other coordinator was taken for dead, and has formed groups since."""
    nodes.members[2].fence = (1, 7)
    nodes.groups.handle(Joined(nodes.members[2]), nodes.now)
    nodes.end(1, KILLED)
    assert sorted(nodes.told("end")) == [0, 1]
    nodes.be_ready(0, 1)
    nodes.judge(None)
    assert {message["group"] for message in nodes.told("form").values()} == {8}

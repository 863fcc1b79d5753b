"""Decisions of a coordinator: messages to members, and what its owner has to record or to judge."""

from collections.abc import Mapping
from dataclasses import dataclass

from ropewalk.cluster.membership.members import Member
from ropewalk.cluster.membership.protocol import Message


@dataclass(frozen=True)
class Tell:
    """Send a member a message."""

    member: Member
    message: Message


@dataclass(frozen=True)
class GroupFormed:
    """A group has formed."""

    group: int
    nodes: int
    spare: int = 0  # nodes that are ready and have no place in it


@dataclass(frozen=True)
class RankLost:
    """A rank ended with an error, or by a signal."""

    group: int
    node: int
    rank: int
    code: int


@dataclass(frozen=True)
class NodeSilent:
    """A node whose ranks were running is silent: it is dead, or disconnected."""

    group: int
    node: int


@dataclass(frozen=True)
class Failed:
    """All ranks of a group are gone after some failed, with exit codes by rank; `Groups.judge` has to follow."""

    group: int
    codes: Mapping[int, int]


Decision = Tell | GroupFormed | RankLost | NodeSilent | Failed

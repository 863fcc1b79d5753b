"""Decisions of a coordinator about groups: messages to members, and what its owner has to record, to reserve or to judge."""

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
class RecordEvent:
    """Record an event of the run."""

    kind: str
    fields: Mapping[str, int]


@dataclass(frozen=True)
class Reserve:
    """Reserve a number above `number` for the next group, which no other coordinator has; `Groups.reserved` has to follow."""

    number: int


@dataclass(frozen=True)
class Failed:
    """All ranks of a group are gone after some failed, with exit codes by rank; `Groups.judge` has to follow."""

    group: int
    codes: Mapping[int, int]


Decision = Tell | RecordEvent | Reserve | Failed

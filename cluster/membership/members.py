"""The coordinator's side of all sessions, without a clock or a socket: events and times in, messages out.

A connection that the peer's kernel closes is a death unless the agent returns with its session within 0.2 s. An agent that sends
nothing for SILENCE_SECONDS is dead or disconnected. The caller's clock must not count time in which its process could
not run, such as a suspended machine. A session that has ended is forgotten: its agent gets a new one when it returns.
"""

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

from ropewalk.cluster.membership.protocol import BEAT_SECONDS, RETURN_SECONDS, SILENCE_SECONDS, Channel, Message

Connection = Hashable


@dataclass(eq=False)
class Member:
    """An agent with a session."""

    session: str
    peer: Any  # identification of the agent, of any type
    fence: tuple[int, int]  # newest term and group that the agent had ranks in when its session began
    heard: float
    connection: Connection | None = None
    closed: float = math.inf  # time at which its connection was closed
    channel: Channel = field(default_factory=Channel)


@dataclass(frozen=True)
class Send:
    """Send a message over a connection."""

    connection: Connection
    message: Message


@dataclass(frozen=True)
class Close:
    """Close a connection."""

    connection: Connection


@dataclass(frozen=True)
class Joined:
    """A member's session has begun."""

    member: Member


@dataclass(frozen=True)
class Received:
    """A message of a member."""

    member: Member
    message: Message


@dataclass(frozen=True)
class Died:
    """A member's session has ended. `silent`: it was still connected but sent nothing."""

    member: Member
    silent: bool


Output = Send | Close | Joined | Received | Died


class Members:
    """All members. Every method returns what follows from an event at the time `now`, in order."""

    def __init__(self) -> None:
        self.by_session: dict[str, Member] = {}
        self._by_connection: dict[Connection, Member] = {}
        self._disconnected: set[Member] = set()
        self._next_beat = 0.0

    def greet(self, connection: Connection, hello: Message, peer: Any, now: float) -> list[Output]:
        """Admit an agent whose hello was verified; one that returns with its session goes on in it."""
        outputs: list[Output] = []
        member = self.by_session.get(hello["session"])
        if member is None and hello["begun"]:  # its session has ended, and the next hello has to name a new one
            return [Send(connection, {"say": "welcome", "begun": False, "got": 0}), Close(connection)]
        resumed = member is not None
        if member is None:
            member = Member(hello["session"], peer, tuple(hello["fence"]), now)
            self.by_session[member.session] = member
        elif member.connection is not None:
            outputs.append(Close(member.connection))
            del self._by_connection[member.connection]
        member.connection, member.closed, member.heard = connection, math.inf, now
        self._by_connection[connection] = member
        self._disconnected.discard(member)
        member.channel.acknowledge(hello["got"])
        outputs.append(Send(connection, {"say": "welcome", "begun": True, "got": member.channel.received}))
        outputs += [Send(connection, message) for message in member.channel.pending()]
        return outputs if resumed else [*outputs, Joined(member)]

    def hear(self, connection: Connection, message: Message, now: float) -> list[Output]:
        """Take a message that has arrived over a connection; one that was closed or replaced is ignored."""
        member = self._by_connection.get(connection)
        if member is None:
            return []
        member.heard = now
        received = member.channel.receive(message)
        return [] if received is None else [Received(member, received)]

    def close(self, connection: Connection, now: float) -> list[Output]:
        """Take note that the other side closed a connection."""
        member = self._by_connection.pop(connection, None)
        if member is not None:
            member.connection, member.closed = None, now
            self._disconnected.add(member)
        return []

    def send(self, member: Member, message: Message) -> list[Output]:
        """Send a member a message, now or when it is back; does nothing if its session has ended."""
        if self.by_session.get(member.session) is not member:
            return []
        numbered = member.channel.number(message)
        return [Send(member.connection, numbered)] if member.connection is not None else []

    def tick(self, now: float) -> list[Output]:
        """Let time pass: send due heartbeats, and end the sessions of dead members. Call it often."""
        ended = [member for member in self._disconnected if now - member.closed >= RETURN_SECONDS]
        outputs = self._end(ended, silent=False)
        if now < self._next_beat:
            return outputs
        self._next_beat = now + BEAT_SECONDS
        members = list(self.by_session.values())
        outputs += self._end([each for each in members if now - each.heard > SILENCE_SECONDS], silent=True)
        for member in self._by_connection.values():
            outputs += [Send(member.connection, message) for message in member.channel.beat()]
        return outputs

    def _end(self, members: Iterable[Member], *, silent: bool) -> list[Output]:
        outputs: list[Output] = []
        for member in members:
            del self.by_session[member.session]
            self._disconnected.discard(member)
            if member.connection is not None:
                del self._by_connection[member.connection]
                outputs.append(Close(member.connection))
            outputs.append(Died(member, silent))
        return outputs

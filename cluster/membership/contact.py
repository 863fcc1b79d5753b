"""An agent's side of its session, without a clock or a socket: events and times in, messages out.

The caller's clock must not count time in which its process could not run.
"""

from dataclasses import dataclass, field

from ropewalk.cluster.membership.protocol import BEAT_SECONDS, Channel, Message


class SessionEndedError(Exception):
    """The coordinator has ended the session: it took this agent for dead, and may have formed a group without it."""


@dataclass
class Contact:
    """A session with one coordinator. A new connection goes on in the session that an earlier one began."""

    session: str
    begun: bool = False  # the coordinator has admitted this agent
    connected: bool = False  # the newest connection was welcomed
    channel: Channel = field(default_factory=Channel)
    _heard: float = 0.0
    _next_beat: float = 0.0

    def hello(self, fence: tuple[int, int], now: float) -> Message:
        """Return the first message over a new connection. `fence`: newest term and group that this agent had ranks in."""
        self.connected, self._heard = False, now
        hello = {"say": "hello", "session": self.session, "begun": self.begun, "fence": list(fence)}
        return {**hello, "got": self.channel.received}

    def welcome(self, message: Message, now: float) -> list[Message]:
        """Take the answer to a hello, and return messages to send again. Raises SessionEndedError."""
        if not message["begun"]:
            raise SessionEndedError
        self.begun = self.connected = True
        self._heard, self._next_beat = now, now + BEAT_SECONDS
        self.channel.acknowledge(message["got"])
        return self.channel.pending()

    def hear(self, message: Message, now: float) -> Message | None:
        """Take a message of the coordinator; return it unless it is a heartbeat or was received before."""
        self._heard = now
        return self.channel.receive(message) if self.connected else None

    def send(self, message: Message) -> list[Message]:
        """Return a message as it is sent; empty while there is no connection, and it is sent over the next one."""
        numbered = self.channel.number(message)
        return [numbered] if self.connected else []

    def beat(self, now: float) -> list[Message]:
        """Return the messages of a heartbeat if it is due."""
        if not self.connected or now < self._next_beat:
            return []
        self._next_beat = now + BEAT_SECONDS
        return self.channel.beat()

    def silent_seconds(self, now: float) -> float:
        """Return the seconds in which the connection has brought nothing."""
        return now - self._heard

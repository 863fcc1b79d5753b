"""One end of a session: numbers messages, and delivers those of the other end once and in order, over any connections."""

from collections import deque

from ropewalk.cluster.membership.protocol import Message


class Channel:
    """Messages of one end that the other has not acknowledged, and the number of the newest one that it has received."""

    def __init__(self) -> None:
        self.received = 0
        self._sent = 0
        self._resend_to = 0  # newest message at the last heartbeat: those up to it have waited for a whole interval
        self._pending: deque[Message] = deque()

    def number(self, message: Message) -> Message:
        """Return the message as it is sent, with its number; it is kept until it is acknowledged."""
        self._sent += 1
        self._pending.append({**message, "n": self._sent})
        return {**self._pending[-1], "got": self.received}

    def receive(self, message: Message) -> Message | None:
        """Take a message of the other end; return it if it is the next one, and None for heartbeats, copies and gaps."""
        self.acknowledge(message["got"])
        number = message.get("n")
        if number != self.received + 1:
            return None
        self.received += 1
        return message

    def acknowledge(self, number: int) -> None:
        while self._pending and self._pending[0]["n"] <= number:
            self._pending.popleft()

    def pending(self) -> list[Message]:
        """Return all messages that were not acknowledged, to be sent over a new connection."""
        return [{**message, "got": self.received} for message in self._pending]

    def beat(self) -> list[Message]:
        """Return a heartbeat, and before it the messages that were not acknowledged since the last one."""
        late = [message for message in self.pending() if message["n"] <= self._resend_to]
        self._resend_to = self._sent
        return [*late, {"say": "beat", "got": self.received}]

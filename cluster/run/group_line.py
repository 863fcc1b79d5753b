"""A rank's line to its agent: its place in a group, the end of the group, and whether it stays for the next one."""

import queue
import threading
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection

Rehearsal = Callable[[], Generator[None, None, None]]  # yields where it can be abandoned for a place in a group


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """A rank's place in a group. `variables`: the environment variables that torchrun gives to a rank."""

    group: int
    variables: Mapping[str, str]


@dataclass(frozen=True)
class Over:
    """A group has ended, and its ranks have to leave it."""

    group: int


@dataclass(frozen=True)
class Trains:
    """The rank trains a model, so that a spare process is worth its memory.

    `stays`: it can leave a group without exiting. `rehearsal`: what a spare process does before it waits, as `module:attribute`,
    since the agent is not to import it; empty: nothing.
    """

    stays: bool
    rehearsal: str


@dataclass(frozen=True)
class HandsOver:
    """The rank leaves a group whose newest state is in the memory of nodes alone: a stop has to wait for the next group."""


@dataclass(frozen=True)
class Left:
    """The rank has left a group, with an exit code, and waits for a place in the next one."""

    group: int
    code: int


class GroupLine:
    """A process's line to its agent. It works in one group at a time, and before the first one it is a spare process."""

    def __init__(self, connection: Connection, *, may_stay: bool) -> None:
        self._connection, self._may_stay = connection, may_stay
        self._assignments: queue.SimpleQueue[Assignment] = queue.SimpleQueue()
        self._over = 0  # newest group that has ended
        self.stays = False
        threading.Thread(target=self._listen, name="agent", daemon=True).start()

    def next_assignment(self) -> Assignment:
        """Wait until the agent gives this process a place."""
        return self._assignments.get()

    @property
    def is_assigned(self) -> bool:
        """True if `next_assignment` returns at once."""
        return not self._assignments.empty()

    def announce(self, *, stays: bool, rehearsal: Rehearsal | None) -> None:
        """Tell the agent that this rank trains; see `Trains`."""
        self.stays = stays and self._may_stay
        if self._may_stay:
            name = f"{rehearsal.__module__}:{rehearsal.__qualname__}" if rehearsal is not None else ""
            self._connection.send(Trains(stays, name))

    def hand_over(self) -> None:
        """Tell the agent that the next group needs the memory of this node, even if the node has to stop."""
        self._connection.send(HandsOver())

    def leave(self, group: int, code: int) -> None:
        """Tell the agent that this process has left a group, with the code that it would have exited with."""
        self._connection.send(Left(group, code))

    def is_over(self, group: int) -> bool:
        """Return True if the agent has ended the group."""
        return self._over >= group

    def _listen(self) -> None:
        while True:
            try:
                message = self._connection.recv()
            except (EOFError, OSError):  # the agent is gone, which ends this process elsewhere
                return
            if isinstance(message, Over):
                self._over = message.group
            else:
                self._assignments.put(message)

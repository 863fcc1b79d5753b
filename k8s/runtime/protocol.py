"""What the pods of a run send each other: one JSON object a line, and a heartbeat a second.

The coordinator begins with a challenge, which a pod answers with its hello (who it is), and that with a welcome: see
`ropewalk.k8s.runtime.handshake`. Then a pod sends `ended` (its agent has exited, with which code) and `leaving` (it was asked
to go). The
coordinator sends `start` (an agent) and `store` (the rendezvous store, in its own pod), `stop` and `kill` (one of the two),
`regroup` (end the agent's ranks: a peer is dead) and `over` (the run is). No message holds a word of a command line.
"""

import json
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, StringConstraints

from ropewalk.cluster.supervise.allocation import AgentSpec, StoreSpec

Message = dict[str, Any]
Address = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F.:]{1,45}$")]
Port = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,5}$")]
Rendezvous = Annotated[str, StringConstraints(pattern=r"^([0-9a-fA-F.:]{1,45}:[0-9]{1,5})?$")]
NodeCount = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,6}(\.\.[0-9]{1,6})?$")]

LONGEST_BYTES = 64 * 1024
HEARTBEAT: Message = {"say": "beat"}


class _Start(BaseModel):
    """A message that starts a process in a pod; the process has a number, by which later messages mean it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    agent: NonNegativeInt
    attempt: PositiveInt


class StartAgent(_Start):
    """`start`: the fields of an `AgentSpec` that a pod cannot know itself."""

    say: Literal["start"] = "start"
    node: NonNegativeInt
    nodes: NodeCount
    address: Address
    rendezvous: Rendezvous

    @classmethod
    def of(cls, number: int, spec: AgentSpec) -> Message:
        """The message that has a pod start the agent `number`."""
        return cls(agent=number, **asdict(spec)).model_dump()

    def spec(self, run_path: str) -> AgentSpec:
        """The agent, as this pod starts it."""
        return AgentSpec(run_path=run_path, **self.model_dump(exclude={"say", "agent"}))


class StartStore(_Start):
    """`store`: the fields of a `StoreSpec`."""

    say: Literal["store"] = "store"
    address: Address
    port: Port

    @classmethod
    def of(cls, number: int, spec: StoreSpec) -> Message:
        """The message that has a pod start the store as its process `number`."""
        return cls(agent=number, attempt=spec.attempt, address=spec.host, port=spec.port).model_dump()

    def spec(self) -> StoreSpec:
        """The store, as this pod starts it."""
        return StoreSpec(attempt=self.attempt, host=self.address, port=self.port)


def pack(message: Message) -> bytes:
    """A message as a line."""
    return json.dumps(message).encode() + b"\n"


def unpack(line: bytes) -> Message:
    """The message in a line. Raises ValueError where there is none."""
    message = json.loads(line)
    if not isinstance(message, dict) or not isinstance(message.get("say"), str):
        raise ValueError(f"not a message: {line[:80]!r}")
    return message

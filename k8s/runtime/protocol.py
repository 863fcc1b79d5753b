"""Messages between the pods of a run, over the sessions of `ropewalk.cluster.membership`.

The hello of a pod has its agent's number and attempt, if one runs in it: it may go on under another coordinator. A pod sends
`ended` (its agent's exit code) and `leaving` (Kubernetes deletes it). The coordinator sends `start` (an agent),
`groups` (the group server, to its own pod), `stop` and `kill` (one of the two), and `over` (the run is over). No message contains
any part of a command line.
"""

from dataclasses import asdict
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, StringConstraints

from ropewalk.cluster.membership.protocol import Message
from ropewalk.cluster.supervise.allocation import AgentSpec, GroupServerSpec

Address = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F.:]{1,45}$")]
NodeCount = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,6}(\.\.[0-9]{1,6})?$")]


class _Start(BaseModel):
    """A message that starts a process in a pod under a number, which later messages refer to."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    agent: NonNegativeInt
    attempt: PositiveInt


class StartAgent(_Start):
    """`start`: the fields of an `AgentSpec` that the pod does not have."""

    say: Literal["start"] = "start"
    node: NonNegativeInt
    nodes: NodeCount
    address: Address

    @classmethod
    def of(cls, number: int, spec: AgentSpec) -> Message:
        return cls(agent=number, **asdict(spec)).model_dump()

    def spec(self, run_path: str) -> AgentSpec:
        return AgentSpec(run_path=run_path, **self.model_dump(exclude={"say", "agent"}))


class StartGroupServer(_Start):
    """`groups`: the fields of a `GroupServerSpec` that the pod does not have."""

    say: Literal["groups"] = "groups"
    nodes: NodeCount
    expected: NonNegativeInt
    host: Address
    term: PositiveInt

    @classmethod
    def of(cls, number: int, spec: GroupServerSpec) -> Message:
        return cls(agent=number, **asdict(spec)).model_dump()

    def spec(self, run_path: str) -> GroupServerSpec:
        return GroupServerSpec(run_path=run_path, **self.model_dump(exclude={"say", "agent"}))

"""Answers of the commands that look into a live run."""

from pydantic import Field

from ropewalk.jobs.cli.answers.base import Answer

FrameLine = tuple[str, str, int]  # function, file, line


class ThreadStack(Answer):
    """A thread with its frames, innermost first."""

    name: str
    main: bool
    frames: list[FrameLine]


class ProcessStack(Answer):
    """A process of a run with its threads."""

    node: int
    rank: int | None
    is_rank: bool = Field(description="false: a process that a rank or an agent has started, such as a program of yours")
    pid: int
    command: str
    phase: str | None
    step: int | None
    state: str = Field(description="the kernel's state of the process, such as sleeping")
    threads: list[ThreadStack]
    text: str = Field(description="where there are no threads: the process's own dump, or the reason")


class StackGroup(Answer):
    """Processes whose main threads are at the same place."""

    frames: list[FrameLine] = Field(description="innermost first")
    text: str
    processes: list[ProcessStack]


class Stacks(Answer):
    """The answer of `stacks`: groups of processes, the smallest first."""

    run: str
    attempt: int
    groups: list[StackGroup]
    missing_nodes: list[int]


class TimeRow(Answer):
    """Time of an operator or kernel, without the operators inside."""

    name: str
    device: bool = Field(description="on a GPU")
    milliseconds: float = Field(description="of a step, mean over ranks")
    share: float
    calls: float
    slowest_rank: int
    slowest_milliseconds: float


class Profile(Answer):
    """The answer of `profile`."""

    run: str
    attempt: int
    trace: str = Field(description="merged trace of all ranks, for ui.perfetto.dev")
    steps: dict[str, list[int]] = Field(description="profiled steps by rank")
    step_milliseconds: dict[str, float] = Field(description="mean by rank")
    rows: list[TimeRow]
    missing_ranks: list[int]


class RankMemory(Answer):
    """Memory of a rank in bytes."""

    rank: int
    world_size: int
    group: int
    step: int
    device: str
    total: int = Field(description="of the process; of a GPU all that is in use")
    capacity: int | None = Field(None, description="of the GPU")
    kinds: dict[str, int] = Field(description="parameters, gradients, optimizer, ...; they sum up to the total")
    peak: dict[str, int] | None = Field(None, description="of a GPU: highest memory of tensors so far")


class Memory(Answer):
    """The answer of `memory`."""

    run: str
    attempt: int
    ranks: list[RankMemory]
    missing_ranks: list[int]

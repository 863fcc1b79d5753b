"""Answers of the commands about this machine, clusters, and the program itself."""

from typing import Any, Literal

from pydantic import Field

from ropewalk.jobs.cli.answers.base import Answer


class CheckRow(Answer):
    """A check of `doctor`."""

    name: str
    ok: bool
    detail: str
    optional: bool


class Health(Answer):
    """The answer of `doctor`."""

    ok: bool = Field(description="all checks passed, apart from optional ones")
    checks: list[CheckRow]


class FailedNode(Answer):
    """A machine that failed in the last days, by itself."""

    node: str
    runs: int = Field(description="that noticed it")
    failures: int
    causes: list[Literal["down", "gpu"]]
    last: float = Field(description="seconds since the epoch")
    avoided: bool = Field(description="new runs do not use it")
    until: float | None = Field(description="when it is used again, if it does not fail; null: it is not avoided")


class Nodes(Answer):
    """The answer of `nodes`."""

    cluster: str
    nodes: list[FailedNode]


class Secrets(Answer):
    """The answer of `secret`."""

    cluster: str
    location: str = Field(description="place of the store")
    secrets: list[str] = Field(description="names of all secrets that are set now; values are never printed")


class Trusted(Answer):
    """The answer of `trust`."""

    file: str
    trusted: bool = Field(description="false: it starts no program, and needs no trust")
    programs: list[str]


class OptionHelp(Answer):
    """An argument or option of a command."""

    name: str
    meaning: str


class KeyHelp(Answer):
    """A key of a job."""

    name: str
    meaning: str
    type: str
    default: str | None = Field(description="as written in a job file; null: the key is required")
    values: list[str]
    jobs: list[str]


class Summary(Answer):
    """A command or a job."""

    name: str
    summary: str


class CommandHelp(Answer):
    """The answer of `help COMMAND`."""

    kind: Literal["command"]
    name: str
    summary: str
    usage: str
    options: list[OptionHelp]
    json_schema: dict[str, Any] | None = Field(description="schema of what --json prints; null: the command has no --json")
    json_lines: bool = Field(description="--json prints a line per item, each of which follows the schema")


class JobHelp(Answer):
    """The answer of `help JOB`, and of `help KEY`, which may be a key of several jobs."""

    kind: Literal["job", "key"]
    name: str
    summary: str
    keys: list[KeyHelp]


class MetricHelp(Answer):
    """The answer of `help METRIC`."""

    kind: Literal["metric"]
    name: str
    summary: str
    unit: str
    jobs: str


class Overview(Answer):
    """The answer of `help` alone."""

    kind: Literal["overview"]
    commands: list[Summary]
    jobs: list[Summary]


class Notified(Answer):
    """Result of a test message to a receiver."""

    target: str
    accepted: bool
    error: str = Field(description="why it was not accepted; empty otherwise")

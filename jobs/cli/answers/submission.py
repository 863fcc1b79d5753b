"""Answers of the commands that plan and start runs."""

from pydantic import Field

from ropewalk.jobs.cli.answers.base import Answer, OpenAnswer, State


class Submitted(Answer):
    """A run that was submitted, or to which `resume --detach` added an attempt."""

    run: str
    job: str
    directory: str


class RunResult(OpenAnswer):
    """The end of a run, with the results of its job."""

    run: str
    job: str
    state: State
    directory: str
    cause: str = Field("", description="why it failed or was refused")


class Circumstance(Answer):
    """A circumstance that is not the same in two runs."""

    what: str
    before: str
    now: str


class ComparedMetric(Answer):
    """A metric of two runs over the steps that both have."""

    metric: str
    steps: int
    first: int | None = Field(description="first step with another value; null: all are equal")
    before: float | None
    now: float | None
    largest: float = Field(description="largest difference, relative to the larger of two values")


class Reproduction(Answer):
    """Differences between a run and a second one of the same job."""

    before: str
    now: str
    identical: bool = Field(description="there are metrics of both runs, and all are equal bit for bit")
    differences: list[Circumstance]
    not_compared: list[str] = Field(description="circumstances of which nothing was kept")
    figures: list[ComparedMetric]


class PlanRow(Answer):
    """A fact about a planned run."""

    name: str
    text: str


class Plan(Answer):
    """The plan of `--dry-run`."""

    job: str
    cluster: str
    runs: int = Field(description="number of runs that would be submitted")
    keys: dict[str, str] = Field(description="keys of the first run that differ from the defaults, as text")
    plan: list[PlanRow]


class Script(Answer):
    """The script or manifest of `--script`."""

    job: str
    cluster: str
    script: str


class Checked(Answer):
    """The result of `check`."""

    file: str
    job: str
    valid: bool
    mistakes: list[str]
    num_changed_keys: int | None = Field(description="keys that differ from their defaults; null for an invalid file")
    imported_from: str | None = Field(description="directory from which your modules were imported, if the job has any")


class DevNode(Answer):
    """A node that `dev` holds."""

    run: str
    host: str = Field(description="for ssh")
    ssh_config: str = Field(description="for `ssh -F`, or for an Include in ~/.ssh/config")
    folder: str = Field(description="on the node: where sessions start")

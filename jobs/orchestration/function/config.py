"""The keys of the `function` job, which `ropewalk.submit` writes."""

from typing import Any, Literal, Self

from pydantic import Field

from ropewalk.cluster.config import CodeConfig, DataPath, JobConfig
from ropewalk.cluster.spec import Engine
from ropewalk.jobs.runs.submit.provenance import refuse_secrets


class FunctionConfig(JobConfig):
    """A function, and what it is called with."""

    function: str = Field(description="module:name of the function; of one that travels by value, its name")
    args: list[Any] = Field(default=[], description="positional arguments, as plain values")
    kwargs: dict[str, Any] = Field(default={}, description="keyword arguments, as plain values")
    by_value: bool = Field(
        default=False,
        description="function and arguments lie pickled in the run's directory, and the result will: ropewalk.submit",
    )
    launch: Literal["once", "ranks"] = Field(default="once", description="once: called once; ranks: by every rank of a group")
    code: CodeConfig = Field(default=CodeConfig(), description="how the code around the directory travels to a cluster")
    directory: DataPath = Field(default=".", description="where its module is imported from; unset: where you submit")

    def project(self) -> tuple[str, CodeConfig] | None:
        """The code around the directory."""
        return self.directory, self.code

    def resolved(self) -> Self:
        """Return the configuration as it is. Raises ConfigError for a secret, which the run would find masked."""
        refuse_secrets(self.model_dump(mode="json"), "let the program read it from its environment or a file")
        return self

    def preferred_engine(self) -> Engine | None:
        """One call needs no group."""
        return Engine.PROCESS if self.launch == "once" else Engine.RANKS

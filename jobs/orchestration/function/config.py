"""The keys of the `function` job, written by `ropewalk.submit`."""

from typing import Any, Literal

from pydantic import Field

from ropewalk.cluster.config import HANGS, RUN_KEYS, CodeConfig, JobConfig
from ropewalk.cluster.input_paths import DataPath
from ropewalk.cluster.section import default_text
from ropewalk.cluster.spec import Engine
from ropewalk.jobs.runs.submit.provenance import REMEDY, refuse_secrets


class FunctionConfig(JobConfig):
    """A function and its arguments."""

    usual_keys = ("function", "args", "kwargs", "launch", "directory", *RUN_KEYS)
    hidden_keys = HANGS | {"seed"}

    function: str = Field(description="module:name of the function; with by_value its name")
    args: list[Any] = Field(default=[], description="positional arguments, as JSON values")
    kwargs: dict[str, Any] = Field(default={}, description="keyword arguments, as JSON values")
    by_value: bool = Field(
        default=False, description="pickle function, arguments and result in the run's directory; set by ropewalk.submit"
    )
    launch: Literal["once", "ranks"] = Field(
        default="once", description="once: call it once; ranks: call it in every rank of a group"
    )
    code: CodeConfig = Field(default=CodeConfig(), description="the copy of the user's code that a cluster gets")
    directory: DataPath = Field(
        default=".", description="folder to import the module from", json_schema_extra=default_text("where you submit")
    )

    def asks_hub(self) -> bool:
        return True

    def project(self) -> tuple[str, CodeConfig] | None:
        return self.directory, self.code

    def check_keys(self) -> None:
        """Raise ConfigError if a key contains a secret, which would be masked in the run."""
        refuse_secrets(self.model_dump(mode="json"), REMEDY)

    def preferred_engine(self) -> Engine | None:
        """Return the process engine for a single call, else the ranks engine."""
        return Engine.PROCESS if self.launch == "once" else Engine.RANKS

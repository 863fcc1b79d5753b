"""Base classes of the types of `--json`."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(description="seconds since the epoch")]
State = Literal["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "REFUSED", "CANCELLED", "PREEMPTED", "REQUEUED", "UNKNOWN"]


class Answer(BaseModel):
    """An object with these keys and no others; values are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class OpenAnswer(Answer):
    """An object with these keys, and with further ones of the run's job."""

    model_config = ConfigDict(extra="allow")


class Error(Answer):
    """Reason for which a command failed; the last line instead of the command's own answer."""

    kind: str = Field(description="ConfigError, DataError, BackendError, ..., or usage for a wrong command line")
    message: str = Field(description="what is wrong, the value, and the remedy")
    exit_code: int


class Failure(Answer):
    """Any command that failed before it had an answer."""

    error: Error

"""The keys of the `command` job."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ropewalk.cluster.config import HANGS, RUN_KEYS, CodeConfig, JobConfig
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.input_paths import DataPath, PathView
from ropewalk.cluster.secrets.plain_text import check_variables
from ropewalk.cluster.section import default_text
from ropewalk.cluster.spec import Engine
from ropewalk.jobs.runs.submit.provenance import REMEDY, refuse_secrets

DEFAULT_NAME = "command"
# launchers: the program is the word after their options
_STARTERS = re.compile(
    r"(python|pypy)[\d.]*|torchrun|accelerate|deepspeed|horovodrun|mpirun|mpiexec|srun|env|nice|time|timeout|nohup|exec|uv|poetry"
    r"|conda|pipenv|launch|run|node|julia|Rscript|perl|ruby"
)
_SHELLS = frozenset({"bash", "sh", "zsh", "dash"})
_SCRIPT = re.compile(r".+\.(py|sh|jl|R|pl|rb|js|lua)")


class CommandConfig(JobConfig):
    """A program, and how to start and stop it."""

    passes_packages_on = True

    usual_keys = (
        *("command", "launch", "setup", "environment", "directory", "metrics", "resources.ranks_per_node", *RUN_KEYS),
        "retries.bugs",
    )
    hidden_keys = HANGS | {"seed"}

    name: str | None = Field(
        default=None, description="name of the run", json_schema_extra=default_text("the name of the program")
    )

    command: list[str] = Field(min_length=1, description="program and arguments as a list of words; a string is a line of bash")
    launch: Literal["ranks", "nodes", "once"] = Field(
        default="ranks",
        description="ranks: a process per rank with torchrun's variables; nodes: one process per node; once: one process in all",
    )
    values: dict[str, str | int | float | bool] = Field(
        default={}, description="values of {name} in command, environment and files of `fill`; a sweep searches values.NAME"
    )
    fill: list[DataPath] = Field(
        default=[], description="text files in which to replace {name}; the command gets the path of the copy"
    )
    setup: list[str] = Field(default=[], description="lines of bash to run before each start, such as `module load cuda`")
    directory: DataPath = Field(
        default=".", description="working directory of the program", json_schema_extra=default_text("where you submit")
    )
    code: CodeConfig = Field(default=CodeConfig(), description="the copy of the user's code that a cluster gets")
    environment: dict[str, str] = Field(default={}, description="environment variables of the program; for secrets: `secrets`")
    stop_signal: Literal["TERM", "INT", "USR1", "USR2"] = Field(
        default="TERM", description="signal that asks the program to save and exit before its nodes are taken away"
    )
    steps: int | None = Field(default=None, ge=1, description="total steps, for progress bars; unset: as logged by the program")
    metrics: dict[str, str] = Field(
        default={},
        description=r"metrics to read from the output of rank 0; name: regular expression with one group, such as `loss=(\S+)`",
    )
    step_pattern: str | None = Field(
        default=None,
        description=r"regular expression of the step in the output, such as `step (\d+)`; unset: count the lines with metrics",
    )

    @field_validator("command", mode="before")
    @classmethod
    def _line(cls, command: Any) -> Any:
        return ["bash", "-c", command] if isinstance(command, str) else command

    @field_validator("environment", mode="before")
    @classmethod
    def _texts(cls, environment: Any) -> Any:
        if not isinstance(environment, dict):
            return environment
        return {name: value if isinstance(value, str) else str(value) for name, value in environment.items()}

    @field_validator("environment")
    @classmethod
    def _no_secrets(cls, environment: dict[str, str]) -> dict[str, str]:
        check_variables(environment, f"run.yaml is a plain file; {REMEDY}")
        return environment

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, pattern in [*self.metrics.items(), *([("step_pattern", self.step_pattern)] if self.step_pattern else [])]:
            try:
                groups = re.compile(pattern).groups
            except re.error as error:
                raise ValueError(f"{name}: {pattern!r} is not a regular expression: {error}") from None
            if groups < 1:
                raise ValueError(f"{name}: {pattern!r} has no group; put the number into parentheses, such as loss=(\\S+)")
        if self.launch != "ranks" and (self.resources.ranks_per_node or 1) != 1:
            raise ValueError(f"launch={self.launch} starts one process per node, but resources.ranks_per_node is more than 1")
        if self.launch == "once" and self.resources.nodes.most > 1:
            raise ValueError("launch=once starts one process on one node, but resources.nodes is more than 1; use launch=nodes")
        return self

    def asks_hub(self) -> bool:
        return True

    def project(self) -> tuple[str, CodeConfig] | None:
        return self.directory, self.code

    def check_keys(self) -> None:
        """Raise ConfigError if a key contains a secret."""
        refuse_secrets(self.model_dump(mode="json"), REMEDY)

    def resolved(self) -> Self:
        """Return the configuration with the run named after its program. Raises ConfigError."""
        self.check_keys()
        return self if self.name else self.model_copy(update={"name": program_name(self.command)})

    def preferred_engine(self) -> Engine | None:
        """Return the process engine for a single process, else the ranks engine."""
        return Engine.PROCESS if self.launch == "once" else Engine.RANKS

    def preflight(self, here: PathView = Path) -> None:
        """Raise ConfigError if this machine can see that the directory does not exist."""
        folder = here(self.directory)
        if folder is not None and not folder.is_dir() and not Path(self.directory).is_dir():
            raise ConfigError(f"directory: {self.directory} is not a directory on this machine")


def fill_placeholders(text: str, values: Mapping[str, object]) -> str:
    """Replace each {name} of `values` in a text; other braces, such as those of JSON, stay."""
    return re.sub(r"\{(\w+)\}", lambda match: str(values[match[1]]) if match[1] in values else match[0], text)


def program_name(command: Sequence[str]) -> str:
    """Return a run's name by its command: `train` for `python train.py` or `torchrun -m mylab.train`, else the first word."""
    arguments = list(command)
    if arguments and Path(arguments[0]).name in _SHELLS:
        arguments = _shell_command(arguments[1:])
    for index, word in enumerate(arguments):
        if word == "-m" and index + 1 < len(arguments):
            return arguments[index + 1].rpartition(".")[2]
        if _SCRIPT.fullmatch(word) and not word.startswith("-"):
            return Path(word).stem
    for word in arguments:
        name = Path(word).name
        if not word.startswith("-") and "=" not in word and not _STARTERS.fullmatch(name):
            return name if re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) else DEFAULT_NAME
    return DEFAULT_NAME


def _shell_command(arguments: Sequence[str]) -> list[str]:
    """Return the words that a shell runs: a script and its arguments, or the last command of a line."""
    if "-c" not in arguments or arguments[-1] == "-c":
        return list(arguments)
    line = arguments[arguments.index("-c") + 1]
    try:
        return shlex.split(re.split(r"&&|;|\n", line.strip().rstrip(";"))[-1], comments=True)
    except ValueError:  # an unclosed quote
        return []

"""The keys of the `dev` job, submitted by `ropewalk dev`."""

from typing import Self

from pydantic import Field, model_validator

from ropewalk.cluster.config import HANGS, RANKS, RUN_KEYS, CodeConfig, JobConfig
from ropewalk.cluster.input_paths import DataPath
from ropewalk.cluster.section import default_text


class DevConfig(JobConfig):
    """A node that is held for ssh sessions."""

    has_checkpoints = False
    passes_packages_on = True

    usual_keys = ("authorized", "directory", "secrets", *RUN_KEYS)
    hidden_keys = HANGS | RANKS | {"seed"}

    authorized: str = Field(
        pattern=r"^ssh-\S+ \S+", description="public key that may log in; `ropewalk dev` makes a pair for each run"
    )
    code: CodeConfig = Field(default=CodeConfig(), description="the copy of the user's code that a cluster gets")
    directory: DataPath = Field(
        default=".", description="folder in which sessions start", json_schema_extra=default_text("where you submit")
    )

    @model_validator(mode="after")
    def _one_node(self) -> Self:
        if self.resources.nodes.most != 1:
            raise ValueError("dev holds one node; for a look at the nodes of a larger run use `ropewalk shell RUN --node K`")
        return self

    def asks_hub(self) -> bool:
        return True

    def project(self) -> tuple[str, CodeConfig] | None:
        return self.directory, self.code

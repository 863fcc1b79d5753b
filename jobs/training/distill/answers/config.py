"""The keys of the `answers` job."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from ropewalk.cluster.config import DataPath, JobConfig, PathView, absolute
from ropewalk.cluster.errors import ConfigError, DataError
from ropewalk.cluster.spec import Engine


def _endpoint(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url!r} is no address; give the endpoint's, such as http://127.0.0.1:8000")
    return url.rstrip("/").removesuffix("/v1")


def _auth(word: str) -> str:
    return absolute(word) if "/" in word else word


class AnswersConfig(JobConfig):
    """The keys of a run that asks a served teacher, by the OpenAI API."""

    endpoint: Annotated[str, AfterValidator(_endpoint)] = Field(
        description="address of the endpoint, such as http://127.0.0.1:8000"
    )
    model: str | None = Field(default=None, description="the model to ask for; unset: the first that the endpoint names")
    prompts: DataPath = Field(description="JSON lines or parquet of {prompt: text or messages}, or {messages: ...}")
    output: DataPath = Field(description="a .jsonl of conversations for finetune: {id, messages}, in the order of the prompts")
    system: str | None = Field(default=None, description="system message of prompts that have none")
    max_tokens: int = Field(default=512, ge=1, description="tokens of an answer at most; one that goes on is left out")
    temperature: float = Field(default=0.0, ge=0, description="0: greedy")
    top_p: float = Field(default=1.0, gt=0, le=1, description="sample from the smallest set of tokens with this probability")
    samples: int = Field(default=1, ge=1, description="answers to each prompt; above 1 with a temperature")
    at_once: int = Field(default=4, ge=1, description="requests under way at a time")
    request_seconds: float = Field(default=300, gt=0, description="an answer that takes longer is asked for again")
    patience_seconds: float = Field(default=600, gt=0, description="how long the endpoint may be away before the attempt fails")
    auth: Annotated[str, AfterValidator(_auth)] | None = Field(
        default=None, description="the environment variable, or the file, that holds the endpoint's token; unset: none"
    )

    def preferred_engine(self) -> Engine | None:
        """One process: the work is the endpoint's."""
        return Engine.PROCESS

    def preflight(self, here: PathView = Path) -> None:
        """Raise ConfigError or DataError unless the prompts are there and the output's name is one."""
        if not self.output.endswith(".jsonl"):
            raise ConfigError(f"output: {self.output} must end in .jsonl")
        if any(letter in self.prompts for letter in "*?["):
            return
        seen = here(self.prompts) if "://" not in self.prompts else None
        if seen is not None and not seen.exists():
            raise DataError(f"prompts: {self.prompts}: no such file; check the path")

"""The keys of the `answers` job."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from ropewalk.cluster.config import HANGS, RANKS, WEIGHTS, JobConfig
from ropewalk.cluster.errors import ConfigError, DataError
from ropewalk.cluster.input_paths import DataPath, InputPath, PathView, absolute
from ropewalk.cluster.spec import Engine


def _endpoint(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url!r} is not an address; name an endpoint, for example http://127.0.0.1:8000")
    return url.rstrip("/").removesuffix("/v1")


def _auth(word: str) -> str:
    return absolute(word) if "/" in word else word


class AnswersConfig(JobConfig):
    """The keys of a run that queries a served teacher over the OpenAI API."""

    usual_keys = (
        *("endpoint", "prompts", "output", "model", "max_tokens", "temperature", "samples", "at_once", "auth", "seed"),
        *("name", "resources.time_limit_minutes"),
    )
    hidden_keys = HANGS | RANKS | WEIGHTS

    endpoint: Annotated[str, AfterValidator(_endpoint)] = Field(
        description="address of the endpoint, for example http://127.0.0.1:8000"
    )
    model: str | None = Field(default=None, description="model to request; unset: the first that the endpoint lists")
    prompts: InputPath = Field(description="JSON lines or parquet of {prompt: text or messages}, or {messages: ...}")
    output: DataPath = Field(
        description="a .jsonl file of conversations for finetune: {id, messages}, in the order of the prompts"
    )
    system: str | None = Field(default=None, description="system message for prompts that have none")
    max_tokens: int = Field(default=512, ge=1, description="maximum tokens of an answer; longer answers are rejected")
    temperature: float = Field(default=0.0, ge=0, description="0: greedy")
    top_p: float = Field(default=1.0, gt=0, le=1, description="sample from the smallest set of tokens with this probability")
    samples: int = Field(default=1, ge=1, description="answers per prompt; more than 1 needs a temperature")
    at_once: int = Field(default=4, ge=1, description="concurrent requests")
    request_seconds: float = Field(default=300, gt=0, description="time limit of a request, which is then repeated")
    patience_seconds: float = Field(
        default=600, gt=0, description="seconds that the endpoint may be unavailable before the attempt fails"
    )
    auth: Annotated[str, AfterValidator(_auth)] | None = Field(
        default=None, description="environment variable or file with the endpoint's token; unset: none"
    )

    def preferred_engine(self) -> Engine | None:
        return Engine.PROCESS

    def preflight(self, here: PathView = Path) -> None:
        """Raise ConfigError or DataError unless the prompts exist and the output's name is valid."""
        if not self.output.endswith(".jsonl"):
            raise ConfigError(f"output: {self.output} must end in .jsonl")
        if any(letter in self.prompts for letter in "*?["):
            return
        local = here(self.prompts) if "://" not in self.prompts else None
        if local is not None and not local.exists():
            raise DataError(f"prompts: {self.prompts}: no such file; check the path")

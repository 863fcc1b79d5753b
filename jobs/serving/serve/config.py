"""The keys of the `serve` job."""

import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from ropewalk.cluster.config import CountRange, DataPath, JobConfig, PathView, Section
from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.serving.feedback.config import CaptureConfig


class ReplicaRange(CountRange):
    """How many replicas a version has: `2`, or `1..4` for as many as the load asks for."""

    noun = "replicas"

    @property
    def scales(self) -> bool:
        """Whether the load decides the number of replicas."""
        return self.least < self.most


Replicas = Annotated[ReplicaRange, BeforeValidator(ReplicaRange.parse), PlainSerializer(ReplicaRange.plain)]


class ScaleConfig(Section):
    """When replicas are added and taken away, where `replicas` is a range."""

    busy: float = Field(default=0.8, gt=0, le=1, description="the share of all slots that should be busy: more adds replicas")
    up_seconds: float = Field(default=5, ge=0, description="seconds for which more are needed before one is added")
    down_seconds: float = Field(default=60, ge=0, description="seconds for which fewer are enough before one is taken away")


class CanaryConfig(Section):
    """A share of the conversations goes to a new version first; what it does with them decides whether it gets the rest."""

    share: float = Field(default=0.1, gt=0, lt=1, description="share of the conversations, drawn by their hash")
    requests: int = Field(default=50, ge=1, description="requests that the new version must have answered")
    minutes: float = Field(default=10, gt=0, description="minutes after which it has passed if it had too few requests to judge")
    max_error_rate: float = Field(default=0.02, ge=0, lt=1, description="share of its requests that may fail; more: it goes")
    alias: str | None = Field(
        default="candidate",
        description="an alias whose version gets the share for as long as it is named; null: none",
    )


class UpdateConfig(Section):
    """How a new version takes over from the one that serves."""

    gated: bool = Field(default=False, description="only versions whose gate has passed get traffic")
    start_minutes: float = Field(default=15, gt=0, description="minutes in which a version must load; else it is refused")
    probe: str = Field(default="Say OK.", min_length=1, description="what a new version is asked before it gets traffic")
    probe_seconds: float = Field(default=60, gt=0, description="seconds in which it must answer that")
    keep_previous_minutes: float = Field(default=10, ge=0, description="minutes for which the version before stays loaded")
    drain_seconds: float = Field(default=300, gt=0, description="seconds that open streams of a leaving replica get")


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class AuthConfig(Section):
    """Where the token lies that clients must send; it is never written down."""

    variable: str | None = Field(default=None, pattern=_VARIABLE.pattern, description="an environment variable of the first node")
    file: DataPath | None = Field(default=None, description="a file that the first node can read")

    @classmethod
    def parse(cls, value: Any) -> Any:
        """Read the name of a variable, or a path. Raises ValueError."""
        if not isinstance(value, str):
            return value
        return {"variable": value} if _VARIABLE.fullmatch(value) else {"file": value}

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.variable is None) == (self.file is None):
            raise ValueError("name either an environment variable or a file that holds the token")
        return self


Auth = Annotated[AuthConfig, BeforeValidator(AuthConfig.parse)]


class ServeConfig(JobConfig):
    """The keys of a serving run."""

    model: str = Field(description="an alias of the registry (production), a run, or a Hugging Face directory")
    replicas: Replicas = Field(default=ReplicaRange(least=1, most=1), description="replicas of a version: 2, or 1..4 by load")
    engine: str = Field(default="auto", description="what answers: auto, transformers, llamacpp, vllm")
    engine_command: list[str] | None = Field(
        default=None,
        description="a program of your own as the engine: its words, in which {model}, {host}, {port}, {slots}, {context} are"
        " filled in; it must answer GET /health and OpenAI's API",
    )
    draft: str | None = Field(
        default=None,
        description="a smaller model with the same tokens for speculative decoding (llamacpp, vllm), such as one distilled from"
        " the model: a run, a Hugging Face directory, a version of the registry; unset: none",
    )
    draft_tokens: int = Field(default=3, ge=1, le=16, description="tokens that the draft guesses at once, at most")
    slots: int = Field(default=4, ge=1, description="requests that a replica answers at once")
    context: int | None = Field(default=None, ge=16, description="tokens of a request with its answer; unset: the model's own")
    cpus: float | None = Field(default=None, gt=0, description="CPU cores that a replica reserves; unset: they share the node")
    gpus: float = Field(
        default=0, ge=0, description="GPUs that a replica reserves, of the resources.gpus of a node; 0: it computes on the CPU"
    )
    host: str = Field(default="127.0.0.1", description="the address to listen at; 0.0.0.0: all of the first node's")
    port: int = Field(default=0, ge=0, le=65535, description="the port to listen at; 0: any free one")
    auth: Auth | None = Field(
        default=None, description="a token that clients must send: an environment variable or a file that holds it; unset: none"
    )
    deadline_seconds: float = Field(default=300, gt=0, description="seconds within which a request must be answered")
    queue_per_slot: float = Field(default=2, ge=0, description="requests that may wait, for each slot; more are refused (429)")
    cache_mib: int = Field(default=0, ge=0, description="MiB for answers to greedy requests that are asked again; 0: none")
    capture: CaptureConfig | None = Field(
        default=None, description="keep requests, answers and ratings, personal data masked; unset: no content is kept"
    )
    scale: ScaleConfig = Field(default=ScaleConfig(), description="when replicas are added and taken away")
    update: UpdateConfig = Field(default=UpdateConfig(), description="how a new version takes over")
    canary: CanaryConfig | None = Field(default=None, description="try a new version on a share of the traffic; unset: no")
    handover: bool = Field(
        default=False, description="asked to stop, submit a successor of this run and serve until that answers"
    )
    handover_minutes: float = Field(
        default=10, gt=0, description="minutes before the time limit's notice at which the successor is submitted"
    )

    @model_validator(mode="after")
    def _engine_is_one(self) -> Self:
        if self.engine_command is not None and self.engine != "auto":
            raise ValueError("engine and engine_command exclude each other: leave one out")
        if self.engine_command is not None and self.draft is not None:
            raise ValueError("draft: name it in the words of engine_command, as that program wants it")
        return self

    def extra_record(self, cluster_name: str) -> dict[str, Any]:
        """The port that others reach the run at, for a cluster that can put a name in front of it."""
        return {"service": {"port": self.port}} if self.port and not self.host.startswith("127.") else {}

    def resolved(self) -> Self:
        """The model and its draft by names that mean the same tomorrow: NAME@ALIAS, a run's id, or an absolute path."""
        from ropewalk.jobs.serving.serve.models import lasting_name

        names = {"model": lasting_name(self.model), "draft": self.draft and lasting_name(self.draft)}
        return self.model_copy(update=names)

    def preflight(self, here: PathView = Path) -> None:
        """Raise ConfigError unless the model and its draft are there, and the nodes have the GPUs that replicas reserve."""
        from ropewalk.jobs.serving.serve.drafts import check_draft, check_engine
        from ropewalk.jobs.serving.serve.models import find_source

        if self.resources.gpus and not self.gpus:
            raise ConfigError(
                f"gpus: is 0, and a node has resources.gpus={self.resources.gpus}: replicas would compute on the CPU; set gpus=1"
                " for a GPU a replica, or resources.gpus=0"
            )
        if self.gpus and self.gpus > self.resources.gpus:
            raise ConfigError(f"gpus={self.gpus:g} a replica, but a node has resources.gpus={self.resources.gpus}; raise that")
        if self.draft is not None:
            check_engine(self.engine, self.gpus)
        model, draft = (here(ref) if ref is not None and ref.startswith("/") else ref for ref in (self.model, self.draft))
        if model is not None:
            find_source(str(model))
        if model is not None and draft is not None:
            check_draft(str(model), str(draft))

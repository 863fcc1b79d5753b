"""Configuration keys of the `serve` job."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from ropewalk.cluster.config import HANGS, RANKS, RUN_KEYS, WEIGHTS, CountRange, JobConfig, UnsetGpus
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.input_paths import DataPath, Fetched, PathView
from ropewalk.cluster.section import Section
from ropewalk.jobs.inference.engines.engine import TOKEN_VARIABLE
from ropewalk.jobs.serving.feedback.config import CaptureConfig


class ReplicaRange(CountRange):
    """Number of replicas of a version: `2`, or `1..4` to scale with the load."""

    noun = "replicas"


Replicas = Annotated[ReplicaRange, BeforeValidator(ReplicaRange.parse), PlainSerializer(ReplicaRange.plain)]


class ScaleConfig(Section):
    """Scaling of the number of replicas, if `replicas` is a range."""

    busy: float = Field(default=0.8, gt=0, le=1, description="target share of busy slots; above it replicas are added")
    up_seconds: float = Field(default=5, ge=0, description="seconds of high load before a replica is added")
    down_seconds: float = Field(default=60, ge=0, description="seconds of low load before a replica is removed")


class CanaryConfig(Section):
    """Trial of a new version on a share of the conversations before it gets all of them."""

    share: float = Field(default=0.1, gt=0, lt=1, description="share of the conversations, selected by hash")
    requests: int = Field(default=50, ge=1, description="requests that the new version must have answered")
    minutes: float = Field(default=10, gt=0, description="minutes after which it passes with fewer requests")
    max_error_rate: float = Field(
        default=0.02, ge=0, lt=1, description="maximum share of failed requests; above it the version is refused"
    )
    alias: str | None = Field(
        default="candidate",
        description="alias whose version gets the share while the alias points to it; null: none",
    )


class UpdateConfig(Section):
    """Replacement of the serving version by a new one."""

    gated: bool = Field(default=False, description="serve only versions that passed their gate")
    start_minutes: float = Field(default=15, gt=0, description="minutes a version may take to load before it is refused")
    probe: str = Field(
        default="Say OK.", min_length=1, description="prompt that a new version must answer before it gets traffic"
    )
    probe_seconds: float = Field(default=60, gt=0, description="seconds it may take to answer the probe")
    keep_previous_minutes: float = Field(default=10, ge=0, description="minutes the previous version stays loaded")
    drain_seconds: float = Field(default=300, gt=0, description="seconds that open streams get before a replica is stopped")


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class AuthConfig(Section):
    """Source of the token that clients must send; the token itself is never written to the run."""

    variable: str | None = Field(default=None, pattern=_VARIABLE.pattern, description="environment variable on the first node")
    file: DataPath | None = Field(
        default=None, description="file on the first node: one token, or a line `name: token` for each client"
    )

    @classmethod
    def parse(cls, value: Any) -> Any:
        """Parse `none`, the name of a variable, or a path. Raises ValueError."""
        if not isinstance(value, str) or value == OPEN:
            return value
        return {"variable": value} if _VARIABLE.fullmatch(value) else {"file": value}

    @model_validator(mode="after")
    def _exactly_one_source(self) -> Self:
        if (self.variable is None) == (self.file is None):
            raise ValueError("name either an environment variable or a file that holds the token")
        return self


OPEN: Literal["none"] = "none"  # written out, since anybody who reaches the port may use the endpoint
Auth = Annotated[AuthConfig | Literal["none"], BeforeValidator(AuthConfig.parse)]


class TlsConfig(Section):
    """Certificate of the endpoint. It protects the way from clients to the gateway."""

    cert: DataPath = Field(description="PEM file with the certificate chain, readable on the first node")
    key: DataPath = Field(description="PEM file with the private key, readable on the first node")


class ServeConfig(JobConfig):
    """Configuration of a serving run."""

    usual_keys = (
        *("model", "replicas", "engine", "slots", "context", "gpus", "host", "port", "auth", "tls", "capture", "canary"),
        *RUN_KEYS,
    )
    hidden_keys = HANGS | RANKS | WEIGHTS | {"seed"}
    has_checkpoints = False

    model: Annotated[str, Fetched("model")] = Field(
        description="alias of the registry (production), run, Hugging Face directory, or name on the hub (ORG/NAME[@REVISION])"
    )
    replicas: Replicas = Field(
        default=ReplicaRange(least=1, most=1), description="replicas of a version: 2, or 1..4 to scale with the load"
    )
    engine: str = Field(default="auto", description="inference engine: auto, transformers, llamacpp, vllm")
    engine_command: list[str] | None = Field(
        default=None,
        description="command of your own engine; {model}, {host}, {port}, {slots}, {context} and {token_file} are filled in; it"
        " must serve GET /health and the OpenAI API, and on several nodes require the token in that file or in"
        f" ${TOKEN_VARIABLE}",
    )
    draft: Annotated[str, Fetched("model")] | None = Field(
        default=None,
        description="draft model for speculative decoding (llamacpp, vllm), with the same tokens, such as one distilled from the"
        " model: a run, a Hugging Face directory, a version of the registry, a name on the hub; unset: none",
    )
    draft_tokens: int = Field(default=3, ge=1, le=16, description="maximum number of tokens drafted at once")
    slots: int = Field(default=4, ge=1, description="requests a replica answers concurrently")
    context: int | None = Field(
        default=None, ge=16, description="context length in tokens, request and answer; unset: the model's"
    )
    cpus: float | None = Field(default=None, gt=0, description="CPU cores reserved per replica; unset: replicas share the node")
    gpus: float = Field(
        default=0,
        ge=0,
        description="GPUs reserved per replica, out of resources.gpus of a node; 0: run on the CPU. If neither is set, each"
        " replica takes one of this machine's unoccupied GPUs, and a cluster that has GPUs asks for both",
    )
    host: str = Field(default="127.0.0.1", description="address to listen on; 0.0.0.0: all addresses of the first node")
    port: int = Field(default=0, ge=0, le=65535, description="port to listen on; 0: any free port")
    auth: Auth | None = Field(
        default=None,
        description="source of the token that clients must send: an environment variable or a file; none: anybody may use the"
        " endpoint. Required with `capture`, or if `host` is not a loopback address",
    )
    tls: TlsConfig | None = Field(default=None, description="serve HTTPS with this certificate; unset: HTTP")
    deadline_seconds: float = Field(default=300, gt=0, description="deadline of a request in seconds")
    queue_seconds: float = Field(default=60, gt=0, description="seconds a request waits for a slot before it is refused (429)")
    queue_requests: int = Field(default=256, ge=0, description="waiting requests of a version; more are refused (429)")
    capture: CaptureConfig | None = Field(
        default=None, description="store requests, answers and ratings, with personal data masked; unset: no content is stored"
    )
    scale: ScaleConfig = Field(default=ScaleConfig(), description="scaling of the number of replicas")
    update: UpdateConfig = Field(default=UpdateConfig(), description="replacement of the serving version")
    canary: CanaryConfig | None = Field(default=None, description="trial of new versions on a share of the traffic; unset: none")
    handover: bool = Field(default=False, description="when asked to stop, submit a successor and serve until it answers")
    handover_minutes: float = Field(
        default=10, gt=0, description="minutes before the notice of the time limit at which the successor is submitted"
    )

    @model_validator(mode="after")
    def _compatible_engine(self) -> Self:
        if self.engine_command is not None and self.engine != "auto":
            raise ValueError("engine and engine_command exclude each other: leave one out")
        if self.engine_command is not None and self.draft is not None:
            raise ValueError("draft: set it in engine_command, as that program expects it")
        names_token = any(name in part for part in self.engine_command or () for name in ("{token_file}", TOKEN_VARIABLE))
        if self.engine_command is not None and self.resources.nodes.most > 1 and not names_token:
            raise ValueError(
                f"engine_command: with resources.nodes={self.resources.nodes} other machines reach the engine's port; have it"
                f" require the token in {{token_file}} or ${TOKEN_VARIABLE} and name that in the command, or set"
                " resources.nodes=1"
            )
        return self

    @model_validator(mode="after")
    def _protected(self) -> Self:
        if self.auth is None and (self.capture is not None or not self.is_local):
            cause = "capture stores what clients write" if self.is_local else f"host={self.host} is reachable from other machines"
            raise ValueError(f"auth: {cause}; name the variable or file with a token (auth=TOKEN_VARIABLE), or set auth=none")
        return self

    @property
    def is_local(self) -> bool:
        """Return True if only programs on the first node can connect."""
        return self.host in {"localhost", "::1"} or self.host.startswith("127.")

    @property
    def token_source(self) -> AuthConfig | None:
        """Source of the token, or None if none is required."""
        return None if self.auth == OPEN else self.auth

    def unset_gpus(self) -> list[UnsetGpus]:
        """Return a GPU for each replica, unless its engine computes on the CPU or is a program of the user's."""
        is_set = "gpus" in self.model_fields_set or "gpus" in self.resources.model_fields_set
        if is_set or self.engine == "llamacpp" or self.engine_command is not None or self.draft is not None:
            return []
        return [UnsetGpus(resources=self.resources, most=self.replicas.most, others=("gpus=1",))]

    def extra_record(self, cluster_name: str) -> dict[str, Any]:
        """Return the service port for clusters that can expose it under a name."""
        return {"service": {"port": self.port}} if self.port and not self.is_local else {}

    def resolved(self) -> Self:
        """Replace the model and its draft by lasting names: NAME@ALIAS, a run's id, or an absolute path."""
        from ropewalk.jobs.serving.serve.models import lasting_name

        names = {"model": lasting_name(self.model), "draft": self.draft and lasting_name(self.draft)}
        return self.model_copy(update=names)

    def preflight(self, here: PathView = Path) -> None:
        """Raise ConfigError unless the model and its draft exist and nodes have the GPUs that replicas reserve."""
        from ropewalk.jobs.serving.serve.drafts import check_draft, check_engine
        from ropewalk.jobs.serving.serve.models import find_source

        if self.resources.gpus and not self.gpus:
            raise ConfigError(
                f"gpus=0, but a node has resources.gpus={self.resources.gpus}: replicas would run on the CPU; set gpus=1"
                " for one GPU per replica, or resources.gpus=0"
            )
        if self.gpus and self.gpus > self.resources.gpus:
            raise ConfigError(
                f"gpus={self.gpus:g} per replica, but a node has resources.gpus={self.resources.gpus}; raise resources.gpus"
            )
        if self.draft is not None:
            check_engine(self.engine, self.gpus)
        model, draft = (here(ref) if ref is not None and ref.startswith("/") else ref for ref in (self.model, self.draft))
        if model is not None:
            find_source(str(model))
        if model is not None and draft is not None:
            check_draft(str(model), str(draft))

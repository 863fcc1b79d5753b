"""Bodies of requests: OpenAI's keys, those that vLLM and llama.cpp add, and `continue_from`."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

MOST_STOPS = 16
MOST_CHOICES = 128
MOST_TOP_LOGPROBS = 20

Text = Annotated[str, Field(max_length=8_000_000)]
Tokens = list[Annotated[int, Field(ge=0, lt=2**31)]]


class Body(BaseModel):
    """Base of all parts of a request: unknown keys are refused, types are strict."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # accepted for compatibility; texts are not padded


class JsonSchema(Body):
    """A named schema."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, JsonValue] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """The format of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ContinueFrom(Body):
    """An answer that another process began and this request continues."""

    id: str = Field(min_length=1, max_length=200)
    created: int = Field(ge=0, lt=2**53)
    token_ids: list[Annotated[int, Field(ge=-1, lt=2**31)]] = []
    started: bool = False  # the first event of a chat, with the role, was sent


class Function(Body):
    """A function that the model may call."""

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_-]+$")]
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool: a function."""

    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    """The name of a function."""

    name: str


class ToolChoice(Body):
    """A function that the model must call."""

    type: Literal["function"]
    function: NamedFunction


class Request(Body):
    """Keys common to both kinds of completions."""

    model: str = Field(min_length=1, max_length=1000)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]] | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    response_format: ResponseFormat | None = None
    user: str | None = None
    # extensions
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    ignore_eos: bool | None = None
    return_token_ids: bool | None = None
    continue_from: ContinueFrom | None = None


class CompletionRequest(Request):
    """POST /v1/completions."""

    prompt: Text | list[Text] | Tokens | list[Tokens]
    max_tokens: int | None = Field(None, ge=0, lt=2**31)
    logprobs: int | None = Field(None, ge=0, le=MOST_TOP_LOGPROBS)
    echo: bool | None = None
    best_of: int | None = Field(None, ge=1, le=MOST_CHOICES)
    suffix: str | None = None


class Part(Body):
    """A part of a message; other types than text are refused later with a clear error."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: str
    text: str | None = None


class Message(Body):
    """A message; unknown keys are passed to the chat template."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | list[Part] | None = None
    name: str | None = None
    tool_calls: list[dict[str, JsonValue]] | None = None
    tool_call_id: str | None = None


class ChatRequest(Request):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_TOP_LOGPROBS)
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, JsonValue] | None = None
    # accepted without effect: they do not change the answer of a text model
    metadata: dict[str, JsonValue] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    modalities: list[Literal["text"]] | None = None


class TokenizeRequest(Body):
    """POST /tokenize: a text or a conversation."""

    model: str | None = None
    content: Text | None = None  # llama.cpp's name
    prompt: Text | None = None  # vLLM's name
    messages: list[Message] | None = None
    add_special: bool | None = None  # add the beginning-of-text token, if the tokenizer has one
    add_special_tokens: bool | None = None


class DetokenizeRequest(Body):
    """POST /detokenize."""

    model: str | None = None
    tokens: Tokens


class TemplateRequest(Body):
    """POST /apply-template: the rendered prompt of a conversation."""

    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)]
    tools: list[Tool] | None = None
    chat_template_kwargs: dict[str, JsonValue] | None = None


AnyRequest = CompletionRequest | ChatRequest


def plain(messages: list[Message]) -> list[dict[str, Any]]:
    """Return messages as dictionaries for a chat template."""
    return [message.model_dump(exclude_none=True) for message in messages]

"""Body of `POST /v1/feedback`, with errors in OpenAI's format."""

from typing import Any, Literal, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

MAX_BYTES = 256 << 10  # of a body
MAX_MESSAGES = 64  # of a correction
MAX_RATINGS = 20  # of one answer


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class CalledFunction(_Body):
    """Name and arguments of a tool call."""

    name: str
    arguments: str  # JSON


class ToolCall(_Body):
    """A tool call of a corrected message."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class CorrectedMessage(_Body):
    """A turn of a corrected answer. Turns of the user or the system are refused: they would rewrite the question."""

    role: Literal["assistant", "tool"]
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None


class FeedbackBody(_Body):
    """Feedback on one answer: at least one of rating, score, correction and comment."""

    answer_id: str = Field(min_length=1, max_length=200, description="`id` of the answer, or the request's x-request-id")
    rating: Literal["up", "down"] | None = None
    score: float | None = Field(default=None, ge=0, le=1, description="0 (useless) to 1 (perfect)")
    correction: str | list[CorrectedMessage] | None = Field(
        default=None, description="corrected answer: a text, or the turns of assistant and tools that replace the answer"
    )
    comment: str | None = None
    user: str | None = Field(default=None, max_length=200, description="tag of the user; only a hash of it is stored")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.rating is None and self.score is None and self.comment is None and self.correction is None:
            raise ValueError("needs at least one of rating, score, correction, comment")
        if self.correction is not None and not self.correction:
            raise ValueError("correction is empty")
        if isinstance(self.correction, list) and len(self.correction) > MAX_MESSAGES:
            raise ValueError(f"correction has {len(self.correction)} messages; at most {MAX_MESSAGES} are accepted")
        if isinstance(self.correction, list) and self.correction[-1].role != "assistant":
            raise ValueError("the last message of a correction must be the assistant's")
        return self


def read_feedback(body: bytes) -> FeedbackBody | dict[str, Any]:
    """Parse a request body; return the feedback, or the error to answer with (status 400)."""
    if len(body) > MAX_BYTES:
        return error_body(f"the body has {len(body)} bytes; feedback of at most {MAX_BYTES} is accepted")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        return error_body(f"the body is not JSON: {error}")
    try:
        return FeedbackBody.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        location = ".".join(map(str, first["loc"]))
        return error_body(f"{location}: {first['msg']}" if location else str(first["msg"]), location or None)


def error_body(
    message: str, param: str | None = None, kind: str = "invalid_request_error", code: str | None = None
) -> dict[str, Any]:
    """Return an error in OpenAI's format."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}

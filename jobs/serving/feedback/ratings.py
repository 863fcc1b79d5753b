"""Body of `POST /v1/feedback`, with errors in OpenAI's format."""

from typing import Any, Literal, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

MAX_CHARS = 200_000  # of a correction or a comment


class CorrectedMessage(BaseModel):
    """A message of a corrected conversation."""

    model_config = ConfigDict(extra="allow", frozen=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | None = Field(default=None, max_length=MAX_CHARS)


class FeedbackBody(BaseModel):
    """Feedback on one answer: at least one of rating, score, correction and comment."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    answer_id: str = Field(min_length=1, max_length=200, description="`id` of the answer, or the request's x-request-id")
    rating: Literal["up", "down"] | None = None
    score: float | None = Field(default=None, ge=0, le=1, description="0 (useless) to 1 (perfect)")
    correction: str | list[CorrectedMessage] | None = Field(
        default=None, description="corrected answer: a text, or the messages that replace the answer"
    )
    comment: str | None = Field(default=None, max_length=MAX_CHARS)
    user: str | None = Field(default=None, max_length=200, description="tag of the user; only a hash of it is stored")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.rating is None and self.score is None and self.comment is None and self.correction is None:
            raise ValueError("needs at least one of rating, score, correction, comment")
        if self.correction is not None and not self.correction:
            raise ValueError("correction is empty")
        if isinstance(self.correction, str) and len(self.correction) > MAX_CHARS:
            raise ValueError(f"correction has {len(self.correction)} characters; at most {MAX_CHARS} are accepted")
        if isinstance(self.correction, list) and self.correction[-1].role != "assistant":
            raise ValueError("the last message of a correction must be the assistant's")
        return self


def read_feedback(body: bytes) -> FeedbackBody | dict[str, Any]:
    """Parse a request body; return the feedback, or the error to answer with (status 400)."""
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

"""What a person says of an answer: the body of `POST /v1/feedback`, and mistakes in it told in OpenAI's form."""

from typing import Any, Literal, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

LONGEST_TEXT = 200_000  # characters of a correction or a comment


class CorrectedMessage(BaseModel):
    """A message of a corrected conversation."""

    model_config = ConfigDict(extra="allow", frozen=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | None = Field(default=None, max_length=LONGEST_TEXT)


class FeedbackBody(BaseModel):
    """Feedback about one answer: at least one of rating, score, correction and comment."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    answer_id: str = Field(min_length=1, max_length=200, description="`id` of the answer, or the request's x-request-id")
    rating: Literal["up", "down"] | None = None
    score: float | None = Field(default=None, ge=0, le=1, description="0: useless, 1: could not be better")
    correction: str | list[CorrectedMessage] | None = Field(
        default=None, description="what the answer should have been: its text, or the conversation from the answer's message on"
    )
    comment: str | None = Field(default=None, max_length=LONGEST_TEXT)
    user: str | None = Field(default=None, max_length=200, description="who says so: a tag, of which only a hash is kept")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.rating is None and self.score is None and self.comment is None and self.correction is None:
            raise ValueError("needs at least one of rating, score, correction, comment")
        if self.correction is not None and not self.correction:
            raise ValueError("correction is empty")
        if isinstance(self.correction, str) and len(self.correction) > LONGEST_TEXT:
            raise ValueError(f"correction has {len(self.correction)} characters; at most {LONGEST_TEXT} are kept")
        if isinstance(self.correction, list) and self.correction[-1].role != "assistant":
            raise ValueError("the last message of a correction must be the assistant's")
        return self


def read_feedback(body: bytes) -> FeedbackBody | dict[str, Any]:
    """The feedback of a request's body, or the error to answer with (status 400)."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        return error_body(f"the body is not JSON: {error}")
    try:
        return FeedbackBody.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        return error_body(f"{place}: {first['msg']}" if place else str(first["msg"]), place or None)


def error_body(
    message: str, param: str | None = None, kind: str = "invalid_request_error", code: str | None = None
) -> dict[str, Any]:
    """An error as the OpenAI API has it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}

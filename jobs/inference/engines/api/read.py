"""A request's bytes as a checked body. Whatever is wrong with them has an answer that says where and what."""

from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from ropewalk.jobs.inference.engines.api.errors import ApiError

MOST_BYTES = 32 * 2**20
Checked = TypeVar("Checked", bound=BaseModel)


def parse(raw: bytes, kind: type[Checked]) -> Checked:
    """The body of a request. Raises ApiError with the key that is wrong."""
    try:
        found: Any = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ApiError(f"the body is not JSON in UTF-8: {error}", code="invalid_json") from None
    if not isinstance(found, dict):
        raise ApiError(f"the body is not a JSON object but {type(found).__name__}", code="invalid_json")
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        raise _refusal(error) from None
    except RecursionError:
        raise ApiError("the body is nested too deeply", code="invalid_json") from None


def _refusal(error: ValidationError) -> ApiError:
    """The first thing that is wrong; of alternatives the one that got furthest."""
    found = error.errors(include_url=False, include_context=False, include_input=True)
    missing = next((one for one in found if one["type"] == "missing" and len(one["loc"]) == 1), None)
    worst = missing or max(found, key=lambda one: len(one["loc"]))
    param = ".".join(str(part) for part in worst["loc"] if not _is_alternative(part))
    if worst["type"] == "missing":
        return ApiError(f"you must provide the parameter {param!r}", param=param, code="missing_required_parameter")
    if worst["type"] == "extra_forbidden":
        return ApiError(f"unrecognized request argument supplied: {param}", param=param, code="unknown_parameter")
    given = repr(worst["input"])
    shown = given if len(given) <= 80 else f"{given[:77]}..."
    words = worst["msg"][:1].lower() + worst["msg"][1:]
    return ApiError(f"invalid value for {param!r}: {words}, got {shown}", param=param, code="invalid_value")


def _is_alternative(part: Any) -> bool:
    """Whether a part of a place is pydantic's name of an alternative, not a key of the body."""
    return isinstance(part, str) and (any(letter in part for letter in "[](),") or part in {"str", "Tokens", "ToolChoice"})

"""Parse and validate the bytes of a request, with errors that name the key and the reason."""

from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from ropewalk.jobs.inference.engines.api.errors import ApiError

MOST_BYTES = 32 * 2**20
Checked = TypeVar("Checked", bound=BaseModel)


def parse(raw: bytes, kind: type[Checked]) -> Checked:
    """Return the validated body of a request. Raises ApiError that names the invalid key."""
    try:
        body: Any = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ApiError(f"the body is not JSON in UTF-8: {error}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise ApiError(f"the body is not a JSON object but {type(body).__name__}", code="invalid_json")
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise _refusal(error) from None
    except RecursionError:
        raise ApiError("the body is nested too deeply", code="invalid_json") from None


def _refusal(error: ValidationError) -> ApiError:
    """Return the first error; among alternatives that of the one that got furthest."""
    errors = error.errors(include_url=False, include_context=False, include_input=True)
    missing = next((entry for entry in errors if entry["type"] == "missing" and len(entry["loc"]) == 1), None)
    worst = missing or max(errors, key=lambda entry: len(entry["loc"]))
    param = ".".join(str(part) for part in worst["loc"] if not _is_alternative(part))
    if worst["type"] == "missing":
        return ApiError(f"you must provide the parameter {param!r}", param=param, code="missing_required_parameter")
    if worst["type"] == "extra_forbidden":
        return ApiError(f"unrecognized request argument supplied: {param}", param=param, code="unknown_parameter")
    value = repr(worst["input"])
    excerpt = value if len(value) <= 80 else f"{value[:77]}..."
    reason = worst["msg"][:1].lower() + worst["msg"][1:]
    return ApiError(f"invalid value for {param!r}: {reason}, got {excerpt}", param=param, code="invalid_value")


def _is_alternative(part: Any) -> bool:
    """Return True if a part of a location is pydantic's name of an alternative, not a key of the body."""
    return isinstance(part, str) and (any(letter in part for letter in "[](),") or part in {"str", "Tokens", "ToolChoice"})

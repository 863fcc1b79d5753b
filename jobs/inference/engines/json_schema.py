"""JSON schemas as grammars of llguidance, which constrain both transformers' logits and llama.cpp."""

import json
from collections.abc import Mapping
from typing import Any

from ropewalk.jobs.inference.engines.api.errors import ApiError
from ropewalk.jobs.inference.engines.requirements import missing_packages

MOST_CHARACTERS = 100_000
# Given free choice of white space a model may generate nothing else; one form is enough.
_FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def grammar_of(schema: Mapping[str, Any]) -> str:
    """Return the grammar of a schema in Lark's form; an empty schema allows any object. Raises ApiError for an invalid schema."""
    if (reason := missing_packages("llguidance")) is not None:
        raise ApiError(f"JSON schemas need llguidance: {reason}", param="response_format", code="unsupported_parameter")
    from llguidance import LLMatcher

    full_schema = {**(dict(schema) or {"type": "object"}), "x-guidance": _FORM}
    text = json.dumps(full_schema)
    if len(text) > MOST_CHARACTERS:
        raise ApiError(f"the JSON schema has {len(text)} characters; the limit is {MOST_CHARACTERS}", param="response_format")
    grammar = f"start: %json {text}"
    if failure := LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(grammar)):
        message = str(failure).strip().splitlines()[0][:300]
        raise ApiError(f"the JSON schema cannot be used: {message}", param="response_format", code="invalid_schema")
    return grammar

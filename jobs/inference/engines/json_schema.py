"""JSON schemas as grammars of llguidance, which transformers' logits and llama.cpp both can be held to."""

import json
from collections.abc import Mapping
from typing import Any

from ropewalk.jobs.inference.engines.api.errors import ApiError
from ropewalk.jobs.inference.engines.requirements import missing_packages

MOST_CHARACTERS = 100_000
# A model that is allowed any white space may write nothing else. One form of it is enough.
_FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def grammar_of(schema: Mapping[str, Any]) -> str:
    """The grammar, in Lark's form, of a schema; of an empty one that of any object. Raises ApiError for one that is none."""
    if (why := missing_packages("llguidance")) is not None:
        raise ApiError(f"JSON schemas need llguidance: {why}", param="response_format", code="unsupported_parameter")
    from llguidance import LLMatcher

    wanted = {**(dict(schema) or {"type": "object"}), "x-guidance": _FORM}
    words = json.dumps(wanted)
    if len(words) > MOST_CHARACTERS:
        raise ApiError(
            f"the JSON schema has {len(words)} characters; at most {MOST_CHARACTERS} are taken", param="response_format"
        )
    grammar = f"start: %json {words}"
    if wrong := LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(grammar)):
        said = str(wrong).strip().splitlines()[0][:300]
        raise ApiError(f"the JSON schema cannot be used: {said}", param="response_format", code="invalid_schema")
    return grammar

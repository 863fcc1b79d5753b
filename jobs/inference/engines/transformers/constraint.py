"""Constrain answers to a JSON schema: the tokens allowed next, by llguidance."""

from collections.abc import Mapping
from typing import Any

import torch

from ropewalk.jobs.inference.engines.api.errors import ApiError
from ropewalk.jobs.inference.engines.json_schema import grammar_of


class Constraint:
    """The state of one constrained answer."""

    def __init__(self, matcher: Any, vocabulary: int, ends: frozenset[int]) -> None:
        self._matcher, self._vocabulary, self._ends = matcher, vocabulary, ends
        self.done = False  # the JSON is complete

    def take(self, token: int) -> None:
        """Advance by a sampled token. Raises ApiError for a token that the schema forbids."""
        if not self._matcher.consume_token(token):
            raise ApiError("the tokens to continue from do not match the JSON schema", code="cannot_continue")
        self.done = bool(self._matcher.is_stopped())

    def mask(self, logits_V: torch.Tensor) -> torch.Tensor:
        """Return logits with forbidden tokens at minus infinity. Raises ApiError if no token is allowed."""
        bitmask = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        allowed = ((bitmask[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1).reshape(-1).bool()[: self._vocabulary]
        if self._matcher.is_accepting():
            allowed[list(self._ends)] = True
        if not allowed.any():
            raise ApiError(f"the JSON schema allows no further token: {self._matcher.get_error()}", code="invalid_schema")
        return logits_V.masked_fill(~allowed.to(logits_V.device), -torch.inf)


class Constraints:
    """Creates constraints for the tokens of one model."""

    def __init__(self, tokenizer: Any, vocabulary: int, ends: frozenset[int]) -> None:
        self._tokenizer, self._vocabulary, self._ends = tokenizer, vocabulary, ends
        self._tokenizer_data: Any = None  # llguidance's tokenizer, created on first use because it is slow

    def begin(self, schema: Mapping[str, Any]) -> Constraint:
        """Return a constraint for one answer; an empty schema allows any JSON object. Raises ApiError for an invalid schema."""
        grammar = grammar_of(schema)
        from llguidance import LLMatcher
        from llguidance.hf import from_tokenizer

        if self._tokenizer_data is None:
            self._tokenizer_data = from_tokenizer(self._tokenizer, n_vocab=self._vocabulary)
        matcher = LLMatcher(self._tokenizer_data, LLMatcher.grammar_from_lark(grammar))
        if failure := matcher.get_error():
            message = str(failure).strip().splitlines()[0][:300]
            raise ApiError(f"the JSON schema cannot be used: {message}", param="response_format", code="invalid_schema")
        return Constraint(matcher, self._vocabulary, self._ends)

"""Answers that are JSON of a schema: which tokens may follow, by llguidance."""

from collections.abc import Mapping
from typing import Any

import torch

from ropewalk.jobs.inference.engines.api.errors import ApiError
from ropewalk.jobs.inference.engines.json_schema import grammar_of


class Constraint:
    """What of an answer is written, and which tokens may follow."""

    def __init__(self, matcher: Any, vocabulary: int, ends: frozenset[int]) -> None:
        self._matcher, self._vocabulary, self._ends = matcher, vocabulary, ends
        self.done = False  # the JSON is complete, and nothing may follow

    def take(self, token: int) -> None:
        """A token was drawn. Raises ApiError for one that the schema forbids."""
        if not self._matcher.consume_token(token):
            raise ApiError("the tokens that the answer is continued from are not of its JSON schema", code="cannot_continue")
        self.done = bool(self._matcher.is_stopped())

    def masked(self, logits_V: torch.Tensor) -> torch.Tensor:
        """Logits of which those are left out that must not follow."""
        words = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        allowed = ((words[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1).reshape(-1).bool()[: self._vocabulary]
        if self._matcher.is_accepting():
            allowed[list(self._ends)] = True
        if not allowed.any():
            raise ApiError(f"nothing can follow that the JSON schema allows: {self._matcher.get_error()}", code="invalid_schema")
        return logits_V.masked_fill(~allowed.to(logits_V.device), -torch.inf)


class Constraints:
    """Makes constraints for the tokens of one model."""

    def __init__(self, tokenizer: Any, vocabulary: int, ends: frozenset[int]) -> None:
        self._tokenizer, self._vocabulary, self._ends = tokenizer, vocabulary, ends
        self._words: Any = None  # llguidance's form of the tokenizer; takes a moment to make

    def begin(self, schema: Mapping[str, Any]) -> Constraint:
        """A constraint for one answer; of an empty schema any JSON object. Raises ApiError for a schema that is none."""
        grammar = grammar_of(schema)
        from llguidance import LLMatcher
        from llguidance.hf import from_tokenizer

        if self._words is None:
            self._words = from_tokenizer(self._tokenizer, n_vocab=self._vocabulary)
        matcher = LLMatcher(self._words, LLMatcher.grammar_from_lark(grammar))
        if wrong := matcher.get_error():
            said = str(wrong).strip().splitlines()[0][:300]
            raise ApiError(f"the JSON schema cannot be used: {said}", param="response_format", code="invalid_schema")
        return Constraint(matcher, self._vocabulary, self._ends)

"""Requests and answers of a scorer, and the forward passes into which questions are packed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ropewalk.cluster.errors import DataError


class Request(NamedTuple):
    """A request for the likelihood of a continuation after a context, both as token ids."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]
    lengths: tuple[float, ...] = ()  # divisors for comparing answers: characters, bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class LogLikelihood:
    """The answer to a request."""

    value: float  # nats, summed over the continuation
    greedy: bool  # every token of the continuation is the likeliest
    margin: float  # margin of the decision `greedy` in nats
    tokens: int  # of the continuation
    exact: bool = False  # computed alone because a decision was near a tie


class Branch(NamedTuple):
    """A continuation in a packed row: the positions that predict its tokens, and the tokens."""

    unit: int
    request: int  # within its unit
    rows: tuple[int, ...]  # positions in the packed row whose outputs predict the tokens
    tokens: tuple[int, ...]


class Piece(NamedTuple):
    """A context and continuations that are computed with it in one pass."""

    unit: int
    context: tuple[int, ...]
    continuations: tuple[tuple[int, tuple[int, ...]], ...]  # (request within the unit, tokens)

    @property
    def length(self) -> int:
        """Tokens of the packed row; the last token of a continuation predicts nothing."""
        return len(self.context) + sum(len(tokens) - 1 for _, tokens in self.continuations)


def clip_context(request: Request, max_length: int) -> Request:
    """Return the request without the beginning of its context that exceeds the model.

    Raises DataError if the continuation alone is too long.
    """
    context, continuation, lengths = request
    if not continuation:
        raise DataError("a request has an empty continuation, which has no likelihood; check the answers of the task")
    if not context:
        raise DataError("a request has an empty context; put the model's prefix token there")
    if len(continuation) > max_length:
        raise DataError(
            f"a continuation has {len(continuation)} tokens, the model sees {max_length}; shorten the text, or score it as a "
            "rolling log-likelihood"
        )
    keep = max_length + 1 - len(continuation)
    return Request(context[-keep:], continuation, lengths)


def pieces(unit: int, requests: Sequence[Request], most_tokens: int) -> Iterator[Piece]:
    """Group the requests of a unit by context, each context once, or more often if its continuations exceed `most_tokens`."""
    by_context: dict[tuple[int, ...], list[tuple[int, tuple[int, ...]]]] = {}
    for number, request in enumerate(requests):
        by_context.setdefault(request.context, []).append((number, request.continuation))
    for context, continuations in by_context.items():
        held: list[tuple[int, tuple[int, ...]]] = []
        size = 0
        for number, tokens in continuations:
            if held and size + len(tokens) - 1 > most_tokens:
                yield Piece(unit, context, tuple(held))
                held, size = [], 0
            held.append((number, tokens))
            size += len(tokens) - 1
        yield Piece(unit, context, tuple(held))


def packs(sequence: Sequence[Piece], most_tokens: int, most_units: int | None, shared: int = 0) -> Iterator[list[Piece]]:
    """Combine pieces in order into forward passes of at most about `most_tokens` tokens and `most_units` units.

    The first `shared` tokens of each piece are computed elsewhere.
    """
    held: list[Piece] = []
    size, units = 0, set[int]()
    for piece in sequence:
        full = most_units is not None and len(units | {piece.unit}) > most_units
        if held and (size + piece.length - shared > most_tokens or full):
            yield held
            held, size, units = [], 0, set()
        held.append(piece)
        size += piece.length - shared
        units.add(piece.unit)
    if held:
        yield held

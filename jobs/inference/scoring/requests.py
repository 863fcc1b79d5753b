"""What a scorer is asked and what it answers, and the forward passes that questions are packed into."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ropewalk.cluster.errors import DataError


class Request(NamedTuple):
    """How likely is the continuation after the context? Both are token ids."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]
    lengths: tuple[float, ...] = ()  # by which the answer may be divided before it is compared: characters, bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class LogLikelihood:
    """The answer to a request."""

    value: float  # nats, summed over the continuation
    greedy: bool  # whether each token of the continuation is the likeliest one
    margin: float  # nats by which the decision `greedy` was made
    tokens: int  # of the continuation
    exact: bool = False  # computed alone, since a decision was near a tie


class Branch(NamedTuple):
    """A continuation in a packed row: where its tokens are predicted, and which they are."""

    unit: int
    request: int  # within its unit
    rows: tuple[int, ...]  # positions in the packed row whose outputs predict the tokens
    tokens: tuple[int, ...]


class Piece(NamedTuple):
    """A context with continuations of it that are computed together."""

    unit: int
    context: tuple[int, ...]
    continuations: tuple[tuple[int, tuple[int, ...]], ...]  # (request within the unit, tokens)

    @property
    def length(self) -> int:
        """Tokens of the packed row that the piece takes; the last token of a continuation predicts nothing."""
        return len(self.context) + sum(len(tokens) - 1 for _, tokens in self.continuations)


def clipped(request: Request, max_length: int) -> Request:
    """The request without the beginning of its context that the model cannot see. Raises DataError where that is not enough."""
    context, continuation, lengths = request
    if not continuation:
        raise DataError("a request has an empty continuation, whose likelihood says nothing; see the task's answers")
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
    """The requests of a unit by their contexts, so that each is computed once, but where its continuations together have more
    than `most_tokens`.
    """
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


def packs(found: Sequence[Piece], most_tokens: int, most_units: int | None, shared: int = 0) -> Iterator[list[Piece]]:
    """Pieces in their order, as many to a forward pass as have `most_tokens` together, of at most `most_units` units.

    The first `shared` tokens of each are computed elsewhere.
    """
    held: list[Piece] = []
    size, units = 0, set[int]()
    for piece in found:
        full = most_units is not None and len(units | {piece.unit}) > most_units
        if held and (size + piece.length - shared > most_tokens or full):
            yield held
            held, size, units = [], 0, set()
        held.append(piece)
        size += piece.length - shared
        units.add(piece.unit)
    if held:
        yield held

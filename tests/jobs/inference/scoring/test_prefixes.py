"""Grouping of contexts by their common prefix."""

from ropewalk.jobs.inference.scoring.prefixes import LEAST_TOKENS, group_by_beginning
from ropewalk.jobs.inference.scoring.requests import Piece

EXAMPLES, OTHERS = tuple(range(100)), tuple(range(500, 580))


def pieces(*contexts: tuple[int, ...]) -> list[Piece]:
    return [Piece(unit, context, ((0, (1, 2)),)) for unit, context in enumerate(contexts)]


def test_each_beginning_has_its_group_and_the_order_within_it_stays() -> None:
    result = pieces((*EXAMPLES, 7, 8), (*OTHERS, 1), (9, 9), (*EXAMPLES, 7, 9), (*EXAMPLES, 3), (*OTHERS, 2, 2))
    groups = [(group.beginning, [piece.unit for piece in group.pieces]) for group in group_by_beginning(result)]
    assert groups == [(EXAMPLES, [0, 3, 4]), (OTHERS, [1, 5]), ((), [2])]


def test_a_context_keeps_a_token_of_its_own() -> None:
    (group,) = group_by_beginning(pieces(EXAMPLES, EXAMPLES, (*EXAMPLES, 1)))
    assert group.beginning == EXAMPLES[:-1]


def test_only_long_prefixes_are_shared() -> None:
    short = EXAMPLES[: LEAST_TOKENS - 1]
    (group,) = group_by_beginning(pieces((*short, 1), (*short, 2)))
    assert (group.beginning, len(group.pieces)) == ((), 2)
    long = (*EXAMPLES, *OTHERS)
    groups = list(group_by_beginning(pieces((*long, 1), (*long, 2), (*EXAMPLES[:60], 600), (*EXAMPLES[:60], 700))))
    assert [len(group.beginning) for group in groups] == [180, 60]
    assert list(group_by_beginning([])) == []

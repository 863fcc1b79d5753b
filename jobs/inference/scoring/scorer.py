"""Log-likelihoods of continuations: contexts shared, questions packed by length, decisions that no packing can change."""

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch

from ropewalk.jobs.inference.scoring.open_model import OpenModel
from ropewalk.jobs.inference.scoring.packed import DOES_NOT_FIT, lay, packed_logits, plain_logits
from ropewalk.jobs.inference.scoring.prefixes import Alike, Beginning, alike
from ropewalk.jobs.inference.scoring.requests import LogLikelihood, Piece, Request, clipped, packs, pieces
from ropewalk.jobs.inference.scoring.threads import one_thread
from ropewalk.jobs.inference.scoring.ties import near_tie, token_noise

log = logging.getLogger(__name__)

# of a forward pass; a CPU is busy with few, and each token more is one that all others of the row are kept from seeing
CPU_TOKENS, GPU_TOKENS = 160, 8192
_OPTIONS_TOKENS = 1024  # of a question's options that are computed with their context at once, however few a forward pass has
_CHECK_TOKENS = 12


class Scorer:
    """Answers requests for one model.

    Whatever is computed beside a question moves its figures by some rounding. So a decision that is nearer to a tie than
    rounding can move it is made again with every sequence computed alone, on one thread: all decisions are those of that plain
    computation, whatever the packing, the number of ranks and the order.
    """

    def __init__(self, opened: OpenModel, *, batch_size: int | None = None, batch_tokens: int | None = None) -> None:
        """`batch_size` is the most units, and `batch_tokens` about the most tokens, that one forward pass computes."""
        self.model, self.max_length = opened.model, opened.max_length
        self.batch_size = batch_size
        self.batch_tokens = batch_tokens or (CPU_TOKENS if self.model.device.type == "cpu" else GPU_TOKENS)
        self._noise = token_noise(self.model.dtype)
        self.shares = shares_contexts(self.model, self._noise)
        self._window = _window(self.model.config)
        self.shares_beginnings = self.shares and self._window is None and shares_beginnings(self.model, self._noise)

    def score(self, requests: Sequence[Request], rivals: Sequence[Hashable] | None = None) -> list[LogLikelihood]:
        """Answer requests, in their order. `rivals` labels each: the answers of one label are compared with each other.

        Unset, requests of one context are rivals. Raises DataError for one that the model cannot answer.
        """
        labels: Sequence[Hashable] = rivals if rivals is not None else [request.context for request in requests]
        members: dict[Hashable, list[int]] = {}
        for place, label in enumerate(labels):
            members.setdefault(label, []).append(place)
        places, found = list(members.values()), dict[int, LogLikelihood]()
        for number, answers in self.units([[requests[place] for place in unit] for unit in places]):
            found.update(zip(places[number], answers, strict=True))
        return [found[place] for place in range(len(requests))]

    def units(self, units: Sequence[Sequence[Request]]) -> Iterator[tuple[int, list[LogLikelihood]]]:
        """Answer units, those with a common beginning together, the shortest first; yields (number of the unit, its answers) as
        soon as all of a unit's are there.

        A unit is a list of requests whose answers are compared with each other: the options of a question.
        """
        clip = [[clipped(request, self.max_length) for request in unit] for unit in units]
        lengths = [sum(len(request.context) + len(request.continuation) for request in unit) for unit in clip]
        found = sorted(
            (piece for number, unit in enumerate(clip) for piece in self._pieces(number, unit)),
            key=lambda piece: (lengths[piece.unit], piece.unit),
        )
        waiting: dict[int, dict[int, LogLikelihood]] = {}
        for group in alike(found) if self.shares_beginnings else [Alike((), tuple(found))]:
            beginning = Beginning(self.model, group.beginning) if group.beginning else None
            for pack in packs(group.pieces, self.batch_tokens, self.batch_size, len(group.beginning)):
                for unit, number, answer in self._answers(pack, beginning):
                    waiting.setdefault(unit, {})[number] = answer
                for unit in dict.fromkeys(piece.unit for piece in pack):
                    if len(waiting[unit]) == len(clip[unit]):
                        answers = waiting.pop(unit)
                        yield unit, self._settled(clip[unit], [answers[i] for i in range(len(clip[unit]))])
        yield from ((number, []) for number, unit in enumerate(clip) if not unit)

    def exact(self, request: Request) -> LogLikelihood:
        """Answer a request by the plain computation: its sequence alone, on one thread."""
        context, continuation, _ = clipped(request, self.max_length)
        with one_thread():
            logits = plain_logits(self.model, (*context, *continuation[:-1]), len(continuation))
        return _answer(logits, continuation, exact=True)

    def _pieces(self, number: int, unit: Sequence[Request]) -> Iterator[Piece]:
        for piece in pieces(number, unit, max(self.batch_tokens, _OPTIONS_TOKENS)):
            if self.shares and (self._window is None or piece.length <= self._window):
                yield piece
            else:  # one by one
                yield from (Piece(number, piece.context, (one,)) for one in piece.continuations)

    def _answers(self, pack: Sequence[Piece], beginning: Beginning | None) -> Iterator[tuple[int, int, LogLikelihood]]:
        if not self.shares or (self._window is not None and any(piece.length > self._window for piece in pack)):
            for piece in pack:
                for number, tokens in piece.continuations:
                    logits = plain_logits(self.model, (*piece.context, *tokens[:-1]), len(tokens))
                    yield piece.unit, number, _answer(logits, tokens)
            return
        row = lay(pack, beginning.size if beginning else 0)
        logits, at = packed_logits(self.model, row, beginning), 0
        for branch in row.branches:
            yield branch.unit, branch.request, _answer(logits[at : at + len(branch.tokens)], branch.tokens)
            at += len(branch.tokens)

    def _settled(self, unit: Sequence[Request], answers: list[LogLikelihood]) -> list[LogLikelihood]:
        if near_tie(unit, answers, self._noise):
            return [self.exact(request) for request in unit]
        return answers


def _answer(logits_NV: torch.Tensor, tokens: Sequence[int], *, exact: bool = False) -> LogLikelihood:
    targets = torch.tensor(tokens, device=logits_NV.device)[:, None]
    own = logits_NV.gather(1, targets)[:, 0]
    each = own - logits_NV.logsumexp(dim=1)
    rivals = logits_NV.scatter(1, targets, -torch.inf).amax(dim=1)
    lead = float((own - rivals).min())
    greedy = bool((logits_NV.argmax(dim=1) == targets[:, 0]).all())
    value = float(each.double().cpu().sum())
    return LogLikelihood(value=value, greedy=greedy, margin=lead, tokens=len(tokens), exact=exact)


def shares_contexts(model: Any, noise: float) -> bool:
    """Whether a packed row gives this model's own answers: models without rotary positions or with a recurrence do not."""
    tokens = _some_tokens(model)
    continuations = ((0, tokens[4:8]), (1, tokens[6:9]))
    row = [Piece(0, tokens[:4], continuations), Piece(1, tokens[2:7], continuations[1:])]
    texts = [((*tokens[:4], *tokens[4:7]), 4), ((*tokens[:4], *tokens[6:8]), 3), ((*tokens[2:7], *tokens[6:8]), 3)]
    return _own_answers(model, lambda: packed_logits(model, lay(row)), texts, noise, "contexts")


def shares_beginnings(model: Any, noise: float) -> bool:
    """Whether rows behind keys and values that were computed before give this model's own answers, one row after the other."""
    tokens = _some_tokens(model)
    rows = [[Piece(0, tokens[:6], ((0, tokens[6:8]), (1, tokens[8:11])))], [Piece(0, tokens[:5], ((0, tokens[5:8]),))]]
    texts = [((*tokens[:6], tokens[6]), 2), ((*tokens[:6], *tokens[8:10]), 3), (tokens[:7], 3)]

    def packed() -> torch.Tensor:
        beginning = Beginning(model, tokens[:4])
        return torch.cat([packed_logits(model, lay(row, beginning.size), beginning) for row in rows])

    return _own_answers(model, packed, texts, noise, "beginnings")


def _some_tokens(model: Any) -> tuple[int, ...]:
    size = min(int(model.config.vocab_size), 1000)
    return tuple((7 * i + 3) % size for i in range(_CHECK_TOKENS))


def _own_answers(
    model: Any, packed: Callable[[], torch.Tensor], texts: Sequence[tuple[tuple[int, ...], int]], noise: float, what: str
) -> bool:
    """Whether what is computed together is what each text (its tokens, how many of its last positions) gives alone."""
    try:
        together = packed()
    except DOES_NOT_FIT as error:
        log.info("%s are not shared: %s does not take such rows (%s)", what, type(model).__name__, error)
        return False
    alone = torch.cat([plain_logits(model, text, last) for text, last in texts])
    difference = float((together.log_softmax(1) - alone.log_softmax(1)).abs().max())
    if difference > noise:
        log.info("%s are not shared: such a row of %s differs by %.2g nats", what, type(model).__name__, difference)
    return difference <= noise


def _window(config: Any) -> int | None:
    """The tokens that sliding attention sees, of a model that has any: a mask of our own would replace it."""
    found = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return int(found) if found else None

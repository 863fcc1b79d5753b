"""Log-likelihoods of continuations: shared contexts, questions packed by length, decisions independent of the packing."""

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch

from ropewalk.jobs.inference.scoring.open_model import OpenModel
from ropewalk.jobs.inference.scoring.packed import (
    DOES_NOT_FIT,
    Predictions,
    lay,
    packed_logits,
    packed_predictions,
    plain_logits,
    plain_predictions,
)
from ropewalk.jobs.inference.scoring.prefixes import Beginning, SharedBeginning, group_by_beginning
from ropewalk.jobs.inference.scoring.requests import LogLikelihood, Piece, Request, clip_context, packs, pieces
from ropewalk.jobs.inference.scoring.threads import one_thread
from ropewalk.jobs.inference.scoring.ties import near_tie, token_noise

log = logging.getLogger(__name__)

# per forward pass; few tokens keep a CPU busy, and every further token enlarges the mask of the row
CPU_TOKENS, GPU_TOKENS = 160, 8192
_OPTIONS_TOKENS = 1024  # options of one question computed with their context in one pass, even above the limit of a pass
_CHECK_TOKENS = 12


class Scorer:
    """Answers requests for one model.

    Computing questions side by side changes log-probabilities by rounding. A decision within rounding of a tie is therefore made
    again with every sequence computed alone on one thread: all decisions equal those of that plain computation, whatever the
    packing, the number of ranks and the order.
    """

    def __init__(self, opened: OpenModel, *, batch_size: int | None = None, batch_tokens: int | None = None) -> None:
        """Limit a forward pass to `batch_size` units and about `batch_tokens` tokens."""
        self.model, self.max_length = opened.model, opened.max_length
        self.batch_size = batch_size
        self.batch_tokens = batch_tokens or (CPU_TOKENS if self.model.device.type == "cpu" else GPU_TOKENS)
        self._noise = token_noise(self.model.dtype)
        self.shares = shares_contexts(self.model, self._noise)
        self._window = _window(self.model.config)
        self.shares_beginnings = self.shares and self._window is None and shares_beginnings(self.model, self._noise)

    def score(self, requests: Sequence[Request], rivals: Sequence[Hashable] | None = None) -> list[LogLikelihood]:
        """Answer requests in their order. `rivals` labels each: answers with the same label are compared with each other.

        Unset, requests of one context are rivals. Raises DataError for a request that the model cannot answer.
        """
        labels: Sequence[Hashable] = rivals if rivals is not None else [request.context for request in requests]
        members: dict[Hashable, list[int]] = {}
        for index, label in enumerate(labels):
            members.setdefault(label, []).append(index)
        members_of_unit, answers_by_index = list(members.values()), dict[int, LogLikelihood]()
        for number, answers in self.units([[requests[index] for index in unit] for unit in members_of_unit]):
            answers_by_index.update(zip(members_of_unit[number], answers, strict=True))
        return [answers_by_index[index] for index in range(len(requests))]

    def units(self, units: Sequence[Sequence[Request]]) -> Iterator[tuple[int, list[LogLikelihood]]]:
        """Answer units, grouped by common beginnings, the shortest first; yield (unit number, answers) once a unit is complete.

        A unit is a list of requests whose answers are compared with each other: the options of a question.
        """
        clip = [[clip_context(request, self.max_length) for request in unit] for unit in units]
        lengths = [sum(len(request.context) + len(request.continuation) for request in unit) for unit in clip]
        queue = sorted(
            (piece for number, unit in enumerate(clip) for piece in self._pieces(number, unit)),
            key=lambda piece: (lengths[piece.unit], piece.unit),
        )
        waiting: dict[int, dict[int, LogLikelihood]] = {}
        for group in group_by_beginning(queue) if self.shares_beginnings else [SharedBeginning((), tuple(queue))]:
            beginning = Beginning(self.model, group.beginning) if group.beginning else None
            for pack in packs(group.pieces, self.batch_tokens, self.batch_size, len(group.beginning)):
                for unit, number, answer in self._answers(pack, beginning):
                    waiting.setdefault(unit, {})[number] = answer
                for unit in dict.fromkeys(piece.unit for piece in pack):
                    if len(waiting[unit]) == len(clip[unit]):
                        answers = waiting.pop(unit)
                        yield unit, self._settle_ties(clip[unit], [answers[i] for i in range(len(clip[unit]))])
        yield from ((number, []) for number, unit in enumerate(clip) if not unit)

    def exact(self, request: Request) -> LogLikelihood:
        """Answer a request by the plain computation: its sequence alone, on one thread."""
        context, continuation, _ = clip_context(request, self.max_length)
        with one_thread():
            predictions = plain_predictions(self.model, (*context, *continuation[:-1]), continuation)
        return _answer(predictions, exact=True)

    def _pieces(self, number: int, unit: Sequence[Request]) -> Iterator[Piece]:
        for piece in pieces(number, unit, max(self.batch_tokens, _OPTIONS_TOKENS)):
            if self.shares and (self._window is None or piece.length <= self._window):
                yield piece
            else:  # each continuation by itself
                yield from (Piece(number, piece.context, (continuation,)) for continuation in piece.continuations)

    def _answers(self, pack: Sequence[Piece], beginning: Beginning | None) -> Iterator[tuple[int, int, LogLikelihood]]:
        if not self.shares or (self._window is not None and any(piece.length > self._window for piece in pack)):
            for piece in pack:
                for number, tokens in piece.continuations:
                    yield piece.unit, number, _answer(plain_predictions(self.model, (*piece.context, *tokens[:-1]), tokens))
            return
        row = lay(pack, beginning.size if beginning else 0)
        for branch, predictions in zip(row.branches, packed_predictions(self.model, row, beginning), strict=True):
            yield branch.unit, branch.request, _answer(predictions)

    def _settle_ties(self, unit: Sequence[Request], answers: list[LogLikelihood]) -> list[LogLikelihood]:
        if near_tie(unit, answers, self._noise):
            return [self.exact(request) for request in unit]
        return answers


def _answer(predictions: Predictions, *, exact: bool = False) -> LogLikelihood:
    return LogLikelihood(
        value=float(predictions.log_probabilities.double().cpu().sum()),
        greedy=bool(predictions.greedy.all()),
        margin=float(predictions.leads.min()),
        tokens=len(predictions.greedy),
        exact=exact,
    )


def shares_contexts(model: Any, noise: float) -> bool:
    """Return True if a packed row gives this model's own answers.

    Models without rotary positions or with a recurrence fail this check.
    """
    tokens = _some_tokens(model)
    continuations = ((0, tokens[4:8]), (1, tokens[6:9]))
    row = [Piece(0, tokens[:4], continuations), Piece(1, tokens[2:7], continuations[1:])]
    texts = [((*tokens[:4], *tokens[4:7]), 4), ((*tokens[:4], *tokens[6:8]), 3), ((*tokens[2:7], *tokens[6:8]), 3)]
    return _own_answers(model, lambda: packed_logits(model, lay(row)), texts, noise, "contexts")


def shares_beginnings(model: Any, noise: float) -> bool:
    """Return True if rows after a cached beginning give this model's own answers, row after row."""
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
    model: Any, packed: Callable[[], torch.Tensor], texts: Sequence[tuple[tuple[int, ...], int]], noise: float, subject: str
) -> bool:
    """Return True if the joint computation equals each text (tokens, number of last positions) computed alone."""
    try:
        together = packed()
    except DOES_NOT_FIT as error:
        log.info("%s are not shared: %s does not take such rows (%s)", subject, type(model).__name__, error)
        return False
    alone = torch.cat([plain_logits(model, text, last) for text, last in texts])
    difference = float((together.log_softmax(1) - alone.log_softmax(1)).abs().max())
    if difference > noise:
        log.info("%s are not shared: such a row of %s differs by %.2g nats", subject, type(model).__name__, difference)
    return difference <= noise


def _window(config: Any) -> int | None:
    """Return the size of the sliding attention window, or None; a custom mask would replace the window."""
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return int(window) if window else None

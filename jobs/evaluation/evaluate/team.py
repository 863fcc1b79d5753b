"""The ranks of an evaluation: work is distributed by length, answered, and recorded item by item."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from ropewalk.cluster.errors import StopRequested
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.files import write_json
from ropewalk.jobs.inference.scoring.decode import Prompt, Sampling
from ropewalk.jobs.inference.scoring.generate import Writer
from ropewalk.jobs.inference.scoring.requests import Request
from ropewalk.jobs.inference.scoring.scorer import Scorer
from ropewalk.jobs.runs.program.finished import Ledger
from ropewalk.sharding.group import Group

log = logging.getLogger(__name__)

_ROUND_SECONDS = 2.0  # interval at which the ranks agree on stopping
_PROGRESS_SECONDS = 0.5


class Write(NamedTuple):
    """A text to be generated."""

    prompt: tuple[int, ...]
    sampling: Sampling
    seed: int
    number: int  # of the draw, which depends on it and the seed


Work = list[Request] | Write  # requests of one unit, compared with each other
_WORK = dict[str, Work] | None


class Team:
    """All ranks, which have opened the model together. Rank 0 distributes work; the others serve until it dismisses them."""

    def __init__(
        self, context: JobContext, group: Group, scorer: Scorer, writer: Writer, settle: Callable[[], None] = lambda: None
    ) -> None:
        """`settle` is called after each round of work, before the ranks agree on anything."""
        self._context, self._group, self._scorer, self._writer = context, group, scorer, writer
        self._settle = settle
        self.ledger = Ledger(context, "answers")
        self._last_report = 0.0

    def answer(self, work: Mapping[str, Work]) -> None:
        """Answer all work that is not in the ledger yet; called on rank 0. Raises StopRequested on all ranks."""
        left = {key: work[key] for key in work if key not in self.ledger}
        self._group.broadcast_object(left, _WORK)
        self._share(left)
        self.ledger.refresh()

    def serve(self) -> None:
        """Do this rank's share of the work until rank 0 dismisses the team."""
        while (left := self._next_work()) is not None:
            self._share(left)

    def _next_work(self) -> Mapping[str, Work] | None:
        nothing: Mapping[str, Work] | None = None
        return self._group.broadcast_object(nothing, _WORK)

    def dismiss(self) -> None:
        """Release the other ranks; called on rank 0."""
        self._next_work()

    def _share(self, left: Mapping[str, Work]) -> None:
        order = sorted(left, key=lambda key: (-_size(left[key]), key))
        mine = order[self._group.rank :: self._group.world_size]
        steps, going, done = self._steps({key: left[key] for key in mine}), bool(mine), 0
        while True:
            until = time.monotonic() + _ROUND_SECONDS
            while going and time.monotonic() < until and not self._context.stop_requested():
                going = next(steps, None) is not None
                done += going
                self._report_progress(done, len(mine))
            self._settle()
            going = going and done < len(mine)
            stop = self._group.any(self._context.stop_requested())
            if stop:
                self.ledger.sync()
                raise StopRequested(f"{len(self.ledger)} answers of this rank are recorded")
            if not self._group.any(going):
                return self.ledger.sync()

    def _steps(self, work: Mapping[str, Work]) -> Iterator[bool]:
        """Do the work piece by piece, yielding after each."""
        scores = {key: unit for key, unit in work.items() if not isinstance(unit, Write)}
        keys = list(scores)
        for number, answers in self._scorer.units([scores[key] for key in keys]):
            self.ledger.add(keys[number], {"answers": [[a.value, a.greedy, a.exact] for a in answers]})
            yield True
        by_sampling: dict[Sampling, dict[str, Prompt]] = {}
        for key, generation in work.items():
            if isinstance(generation, Write):
                prompt = Prompt(generation.prompt, (generation.seed, generation.number))
                by_sampling.setdefault(generation.sampling, {})[key] = prompt
        for sampling, prompts in by_sampling.items():
            keys = list(prompts)
            for number, text in self._writer.write(list(prompts.values()), sampling):
                self.ledger.add(keys[number], {"text": text.text, "tokens": len(text.tokens), "ended": text.ended})
                yield True

    def _report_progress(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._group.is_main and now - self._last_report > _PROGRESS_SECONDS:
            self._last_report, ranks = now, self._group.world_size
            report = {"stage": "answer", "done": done * ranks, "total": total * ranks, "unit": "requests", "rates": {}}
            write_json(self._context.run.progress, report, durable=False)


def _size(work: Work) -> int:
    if isinstance(work, Write):
        return len(work.prompt) + work.sampling.max_new_tokens
    return sum(len(request.context) + len(request.continuation) for request in work)

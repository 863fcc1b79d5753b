"""Chunks of rollouts: drawn from the policy, rewarded, and written down; what one rank does of a round."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from typing import Any, NamedTuple

import pyarrow as pa

from ropewalk.jobs.training.align.grpo.prompts import Prompt, Prompts
from ropewalk.jobs.training.align.grpo.rewards.pool import RewardPool, Score
from ropewalk.jobs.training.align.grpo_config import GrpoConfig
from ropewalk.jobs.training.rollouts.generate import Answer
from ropewalk.jobs.training.rollouts.ledger import ISSUED, ROLLOUTS
from ropewalk.jobs.training.rollouts.sampling import Draw

LOOK_SECONDS = 1.0  # between two signs of life while rewards are waited for

Answering = Callable[[Sequence[Sequence[int]], Sequence[Draw]], list[Answer]]  # prompts as token ids, and how to draw


class Answered(NamedTuple):
    """A chunk that is drawn, and whose rewards are under way."""

    draws: Sequence[Draw]
    prompts: list[Prompt]
    answers: list[Answer]
    texts: list[str]
    scores: list["Future[list[Score]]"]


def cut(slots: Sequence[int], attempt: int, config: GrpoConfig, *, held_out: bool = False) -> list[list[Draw]]:
    """The draws of one try in chunks: a function of the slots, and not of who draws. A held-out prompt is answered once."""
    draws = [Draw(slot, attempt, sample) for slot in slots for sample in range(1 if held_out else config.group_size)]
    size = config.chunk or config.group_size
    return [draws[start : start + size] for start in range(0, len(draws), size)]


def issued(draws: Sequence[Draw], prompts: Prompts, version: int) -> pa.Table:
    """The rows of rollouts that are about to be drawn."""
    rows = [prompts.at(draw.slot, draw.attempt).row for draw in draws]
    columns = [[draw[at] for draw in draws] for at in range(3)]
    return pa.table([*map(pa.array, columns), rows, [version] * len(rows)], names=ISSUED.names).cast(ISSUED)


class ChunkMaker:
    """Draws and rewards chunks."""

    def __init__(self, prompts: Prompts, tokenizer: Any, pool: RewardPool, alive: Callable[[], None]) -> None:
        self._prompts, self._tokenizer, self._pool, self._alive = prompts, tokenizer, pool, alive

    def answer(self, draws: Sequence[Draw], answering: Answering) -> Answered:
        """Draw a chunk, and begin to reward it."""
        self._alive()
        prompts = [self._prompts.at(draw.slot, draw.attempt) for draw in draws]
        answers = answering([prompt.tokens for prompt in prompts], draws)
        texts = [self._tokenizer.decode(answer.tokens, skip_special_tokens=True) for answer in answers]
        scores = [self._pool.submit(text, prompt.record) for text, prompt in zip(texts, prompts, strict=True)]
        return Answered(draws, prompts, answers, texts, scores)

    def rewarded(self, chunk: Answered, version: int) -> pa.Table:
        """The rows of a chunk, when its rewards are there; each has a time limit."""
        while wait(chunk.scores, LOOK_SECONDS).not_done:
            self._alive()
        return pa.Table.from_pylist(list(_rows(chunk, version)), ROLLOUTS)


def _rows(chunk: Answered, version: int) -> Iterator[dict[str, Any]]:
    for draw, prompt, answer, text, future in zip(*chunk, strict=True):
        scores = future.result()
        yield {
            **draw._asdict(),
            "prompt": prompt.row,
            "policy_version": version,
            **answer._asdict(),
            "answer": text,
            "rewards": [score.value for score in scores],
            "outcomes": [score.outcome for score in scores],
        }

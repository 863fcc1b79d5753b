"""A rollout worker: draws and rewards chunks beside the ranks, by the newest weights, and writes them into the ledger.

python -m ropewalk.jobs.training.align.grpo.worker RUN --attempt A --group G --number N --of M --parent PID
"""

import argparse
import ctypes
import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from ropewalk.cluster.errors import ConfigError, StaleAttemptError
from ropewalk.cluster.process.output import configure_logging
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.fence import Fence
from ropewalk.cluster.run.files import read_json, write_json
from ropewalk.jobs.training.align.config import AlignConfig
from ropewalk.jobs.training.align.grpo.chunks import ChunkMaker, cut
from ropewalk.jobs.training.align.grpo.engines import EngineSetup, RolloutEngine, find_engine
from ropewalk.jobs.training.align.grpo.orders import Order, Orders
from ropewalk.jobs.training.align.grpo.prompts import READY, TOKENIZER, Prompts, held_out_prompts
from ropewalk.jobs.training.align.grpo.setup import answer_ends, open_pool, open_tokenizer, policy_plan
from ropewalk.jobs.training.loop.load_checkpoint import empty_model
from ropewalk.jobs.training.rollouts.ledger import ChunkName, Round, chunk_of, rollouts_folder

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.02
_PR_SET_PDEATHSIG = 1


class Worker:
    """Does every `of`-th chunk of each order, beginning with `number`."""

    def __init__(self, run: RunDir, fence: Fence, number: int, of: int) -> None:
        self._run, self._fence, self._number, self._of = run, fence, number, of
        self._config = AlignConfig.model_validate(run.record["config"])
        self._orders = Orders(rollouts_folder(run), fence)
        self._version = -1

    def work(self) -> None:
        """Work until the parent ends this process. Raises ConfigError for an engine or a reward that cannot be made."""
        config, folder = self._config, rollouts_folder(self._run)
        counted = read_json(folder / READY)
        assert counted is not None, "ranks prepare prompts before they start workers"
        tokenizer, prompts, held_out = open_tokenizer(folder), Prompts(folder, config.seed), held_out_prompts(folder)
        plan = policy_plan(self._run, config, counted, prompts)

        def empty() -> torch.nn.Module:
            model: torch.nn.Module = empty_model(plan.config)
            return model if plan.adapter is None else plan.adapter(model)

        ends = answer_ends(config, tokenizer, counted["tokenizer"]["end_of_document"])
        setup = EngineSetup(config=config.grpo, seed=config.seed, ends=ends, tokenizer=folder / TOKENIZER, empty_model=empty)
        engine = find_engine(setup)
        with open_pool(self._run, config.grpo) as pool:
            makers = {False: ChunkMaker(prompts, tokenizer, pool, lambda: None)}
            if held_out is not None:
                makers[True] = ChunkMaker(held_out, tokenizer, pool, lambda: None)
            while True:
                self._once(engine, makers)

    def _once(self, engine: RolloutEngine, makers: dict[bool, ChunkMaker]) -> None:
        for order in self._orders.pending():
            one, maker = Round(self._run, self._fence, order.position, held_out=order.held_out), makers[order.held_out]
            for name, draws in self._mine(order, one):
                self._take_newest(engine)
                one.put(name, maker.rewarded(maker.answer(draws, engine.answer), self._version))
                return  # an order of an earlier round may have come
        time.sleep(LOOK_SECONDS)

    def _mine(self, order: Order, one: Round) -> Iterator[tuple[ChunkName, list]]:  # type: ignore[type-arg]
        there = {chunk_of(name) for name in one.names()}
        chunks = cut(order.slots, order.attempt, self._config.grpo, held_out=order.held_out)
        for number in order.numbers:
            name = ChunkName(order.attempt, number)
            if number % self._of == self._number and name not in there:
                yield name, chunks[number]

    def _take_newest(self, engine: RolloutEngine) -> None:
        found = self._orders.policy()
        assert found is not None, "weights are published before the first order"
        if found[0] != self._version:
            engine.load(found[1])
            self._version = found[0]


def error_file(folder: Path, number: int) -> Path:
    """Where a worker says why it gives up."""
    return folder / f"error-{number}"


def main() -> None:
    """Be a worker."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    for name in ("attempt", "group", "number", "of", "parent"):
        parser.add_argument(f"--{name}", type=int, required=True)
    words = parser.parse_args()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != words.parent:  # it died before the line above
        return
    configure_logging(f"worker {words.number}")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    run = RunDir(words.run)
    fence = Fence(run, words.attempt, words.group)
    try:
        Worker(run, fence, words.number, words.of).work()
    except StaleAttemptError as error:
        log.info("%s", error)
    except ConfigError as error:
        write_json(error_file(Orders(rollouts_folder(run), fence).folder, words.number), str(error))
        raise


if __name__ == "__main__":
    main()

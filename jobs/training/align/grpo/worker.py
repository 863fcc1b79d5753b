"""A rollout worker: generates and rewards chunks beside the ranks with the newest weights, and writes them to the ledger.

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
from ropewalk.jobs.training.align.grpo.chunks import ChunkGenerator, split_into_chunks
from ropewalk.jobs.training.align.grpo.engines import EngineSetup, RolloutEngine, find_engine
from ropewalk.jobs.training.align.grpo.prompts import READY, TOKENIZER, Prompts, held_out_prompts
from ropewalk.jobs.training.align.grpo.requests import ChunkRequest, ChunkRequests
from ropewalk.jobs.training.align.grpo.setup import answer_ends, open_pool, open_tokenizer, policy_plan
from ropewalk.jobs.training.loop.architecture.bare_model import empty_model
from ropewalk.jobs.training.rollouts.ledger import ChunkName, Round, parse_chunk_name, rollouts_folder

log = logging.getLogger(__name__)

POLL_SECONDS = 0.02
_PR_SET_PDEATHSIG = 1


class Worker:
    """Generates every `of`-th chunk of each request, starting with `number`."""

    def __init__(self, run: RunDir, fence: Fence, number: int, of: int) -> None:
        self._run, self._fence, self._number, self._of = run, fence, number, of
        self._config = AlignConfig.model_validate(run.record["config"])
        self._requests = ChunkRequests(rollouts_folder(run), fence)
        self._version = -1

    def work(self) -> None:
        """Work until the parent ends this process. Raises ConfigError for an engine or reward that cannot be created."""
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
            generators = {False: ChunkGenerator(prompts, tokenizer, pool, lambda: None)}
            if held_out is not None:
                generators[True] = ChunkGenerator(held_out, tokenizer, pool, lambda: None)
            while True:
                self._work_once(engine, generators)

    def _work_once(self, engine: RolloutEngine, generators: dict[bool, ChunkGenerator]) -> None:
        for request in self._requests.pending():
            ledger_round = Round(self._run, self._fence, request.position, held_out=request.held_out)
            generator = generators[request.held_out]
            for name, draws in self._own_chunks(request, ledger_round):
                self._load_newest_policy(engine)
                ledger_round.put(name, generator.with_rewards(generator.generate(draws, engine.answer), self._version))
                return  # look for requests of earlier rounds first
        time.sleep(POLL_SECONDS)

    def _own_chunks(self, request: ChunkRequest, ledger_round: Round) -> Iterator[tuple[ChunkName, list]]:  # type: ignore[type-arg]
        existing = {parse_chunk_name(name) for name in ledger_round.names()}
        chunks = split_into_chunks(request.slots, request.attempt, self._config.grpo, held_out=request.held_out)
        for number in request.numbers:
            name = ChunkName(request.attempt, number)
            if number % self._of == self._number and name not in existing:
                yield name, chunks[number]

    def _load_newest_policy(self, engine: RolloutEngine) -> None:
        policy = self._requests.policy()
        assert policy is not None, "weights are published before the first request"
        if policy[0] != self._version:
            engine.load(policy[1])
            self._version = policy[0]


def error_file(folder: Path, number: int) -> Path:
    """Return the file in which a worker reports its fatal error."""
    return folder / f"error-{number}"


def main() -> None:
    """Run a worker."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    for name in ("attempt", "group", "number", "of", "parent"):
        parser.add_argument(f"--{name}", type=int, required=True)
    arguments = parser.parse_args()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != arguments.parent:  # the parent died before prctl
        return
    configure_logging(f"worker {arguments.number}")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    run = RunDir(arguments.run)
    fence = Fence(run, arguments.attempt, arguments.group)
    try:
        Worker(run, fence, arguments.number, arguments.of).work()
    except StaleAttemptError as error:
        log.info("%s", error)
    except ConfigError as error:
        write_json(error_file(ChunkRequests(rollouts_folder(run), fence).folder, arguments.number), str(error))
        raise


if __name__ == "__main__":
    main()

"""What the student writes itself: drawn before each step, kept in the ledger, and learnt as its teacher goes on from it (GKD,
2306.13649).

A sample is the student's own, or text, by a hash of (seed, position). Its tokens are a function of seed, position and the
student's weights, whoever draws it: a run that was killed at any moment draws what the ledger lacks, and ends bit by bit as the
undisturbed one.
"""

from collections.abc import Mapping, Sequence

import pyarrow as pa
import torch
from torch import nn

from ropewalk.cluster.errors import StopRequested
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.heartbeat import Phase
from ropewalk.datapipe.loader.order import hash_words
from ropewalk.jobs.training.distill.config import DistillConfig
from ropewalk.jobs.training.loop.batch import IGNORE, Batch
from ropewalk.jobs.training.loop.source import Source
from ropewalk.jobs.training.loop.state import TrainState
from ropewalk.jobs.training.rollouts.generate import answer_all, gathered
from ropewalk.jobs.training.rollouts.ledger import ISSUED, ROLLOUTS, ChunkName, Round, arrow_table, chunk_of, settle
from ropewalk.jobs.training.rollouts.resume import Parts, kept, take_up
from ropewalk.jobs.training.rollouts.sampling import Draw, Sampling, uniforms
from ropewalk.sharding.fsdp import should_reshard_after_forward
from ropewalk.sharding.group import Group

# B samples, T tokens a sample

_WORD = 0x6F776E  # of the hash that says whose a sample is


def is_own(seed: int, position: int, share: float) -> bool:
    """Whether the student writes the sample at this position."""
    return int(hash_words(seed, _WORD, position)[0]) < share * 2.0**64


class OwnSource(Source):
    """Samples of text, some of them replaced by what the student has written for the step that is about to be learnt."""

    prefetchable = False

    def __init__(self, texts: Source) -> None:
        self._texts = texts
        self.epoch_samples, self.tokens_per_sample = texts.epoch_samples, texts.tokens_per_sample
        self._written: Mapping[int, tuple[list[int], list[int]]] = {}

    def put(self, written: Mapping[int, tuple[list[int], list[int]]]) -> None:
        """From now on these positions are prompts and answers as token ids, and all others are text."""
        self._written = written

    def read(self, positions: Sequence[int]) -> Batch:
        """The samples at these positions, padded to the longest; of the student's own its answers alone are labels."""
        batch = {name: values.clone() for name, values in self._texts.read(positions).items()}
        longest = 0
        for row, position in enumerate(positions):
            prompt, answer = self._written.get(position, ([], []))
            if not answer:
                longest = self.tokens_per_sample
                continue
            start, stop = len(prompt) - 1, len(prompt) + len(answer) - 1
            longest = max(longest, stop)
            batch["input_ids"][row] = 0
            batch["input_ids"][row, :stop] = torch.tensor([*prompt, *answer[:-1]])
            batch["labels"][row] = IGNORE
            batch["labels"][row, start:stop] = torch.tensor(answer)
        return {name: values[:, :longest] for name, values in batch.items()}

    def filler(self) -> Batch:
        """One sample without labels."""
        return self._texts.filler()


class StudentSource(OwnSource):
    """Samples of text and of the student, which writes its own before each step."""

    def __init__(
        self,
        texts: Source,
        context: JobContext,
        config: DistillConfig,
        group: Group,
        *,
        ends: frozenset[int],  # tokens that end an answer
    ) -> None:
        assert config.on_policy is not None
        super().__init__(texts)
        self.context, self.config, self.group, self.ends, self.keys = context, config, group, ends, config.on_policy
        self._next: int | None = None  # the position after the last step's samples; another one follows a rollback

    def prepare(self, state: TrainState) -> None:
        """Have the student write its samples of the next step."""
        step, position = state.progress.step, state.progress.position
        if self.group.is_main and self._next != position:
            take_up(self.context.run, self.context.fence, position, step, went_back=self._next is not None)
        self.group.barrier()
        self._next = position + self.config.batch.global_batch
        own = [k for k in range(position, self._next) if is_own(self.config.seed, k, self.keys.share)]
        parts = self._made(Round(self.context.run, self.context.fence, position), own, state.model, step) if own else {}
        rows = [row for _, table in parts.values() for row in table.to_pylist()]
        prompts = dict(zip(own, self._prompts(own), strict=True))
        self.put({row["slot"]: (prompts[row["slot"]], row["tokens"]) for row in rows})

    def committed(self, position: int, step: int) -> None:
        """Mark samples before the checkpoint as used."""
        settle(self.context.run, self.context.fence, position, step)

    def _made(self, one: Round, own: Sequence[int], model: nn.Module, step: int) -> Parts:
        """The chunks of a round: what the ledger has of it, and the rest drawn now."""
        complete, parts = kept(one, self.group)
        chunks = {
            ChunkName(0, number): own[start : start + self.keys.chunk]
            for number, start in enumerate(range(0, len(own), self.keys.chunk))
        }
        if complete and parts.keys() == chunks.keys():
            return parts
        parts = {name: part for name, part in parts.items() if part[1]["policy_version"][0].as_py() == step}
        missing = [name for name in chunks if name not in parts]
        if self.group.is_main and missing:
            one.issue(0, _keys([k for name in missing for k in chunks[name]], step).cast(ISSUED))
        for name, raw in self._drawn(one, {name: chunks[name] for name in missing}, model, step):
            parts[chunk_of(name)] = name, arrow_table(raw)
        if any(name not in parts for name in chunks):
            raise StopRequested("asked to stop while samples were written")
        if self.group.is_main:
            one.commit([parts[name][0] for name in chunks], step)
        return parts

    def _drawn(
        self, one: Round, missing: Mapping[ChunkName, Sequence[int]], model: nn.Module, step: int
    ) -> list[tuple[str, bytes]]:
        """Draw and write down this rank's share, until its node must stop; the files of all ranks."""
        files = []
        with gathered(model, reshard=should_reshard_after_forward(model, self.config.parallel, self.group.device)):
            for name in list(missing)[self.group.rank :: self.group.world_size]:
                if self.context.stop_requested():
                    break
                self.context.heart.beat(Phase.ROLLOUT, step)
                files.append(one.put(name, self._chunk(missing[name], model, step)))
        return [file for part in self.group.all_gather_object(files) for file in part]

    def _chunk(self, positions: Sequence[int], model: nn.Module, step: int) -> pa.Table:
        draws = [Draw(position, 0, 0) for position in positions]
        numbers = uniforms(self.config.seed, draws, self.keys.max_new_tokens)
        answers = answer_all(model, self._prompts(positions), numbers, self.ends, Sampling(self.keys.temperature))
        table = _keys(positions, step)
        for name, values in zip(answers[0]._fields, zip(*answers, strict=True), strict=True):
            table = table.append_column(name, pa.array(values))
        none = pa.array([[]] * len(positions))
        table = table.append_column("answer", pa.nulls(len(positions))).append_column("rewards", none)
        return table.append_column("outcomes", none).cast(ROLLOUTS)

    def _prompts(self, positions: Sequence[int]) -> list[list[int]]:
        if not positions:
            return []
        found: list[list[int]] = self._texts.read(positions)["input_ids"][:, : self.keys.prompt_tokens].tolist()
        return found


def _keys(positions: Sequence[int], step: int) -> pa.Table:
    """Which samples: the place in the run is the prompt's number too, for its text lies in the data."""
    zeros = [0] * len(positions)
    return pa.table([list(positions), zeros, zeros, list(positions), [step] * len(positions)], names=ISSUED.names)

"""Changes inside a rank before its entry starts: recorders, and faults at a chosen moment."""

import json
import os
import time
from typing import Any

from ropewalk.cluster.run.context import JobContext

MARK = 255  # a byte that no document holds: sequences made of it are bad samples


def record_samples(context: JobContext) -> None:
    """Write down which samples each update learnt from."""
    from ropewalk.datapipe.loader.loader import TokenLoader
    from ropewalk.jobs.training.loop.update.step import TrainStep

    read, update = TokenLoader.read, TrainStep.update
    batches: list[list[int]] = []
    learnt = [0]

    def recorded_read(self: TokenLoader, positions: Any) -> Any:
        batches.append(list(positions))
        return read(self, positions)

    def recorded_update(self: TrainStep, *arguments: Any) -> None:
        update(self, *arguments)
        with (context.run.path / f"seen-{context.attempt}-{context.rank}.jsonl").open("a") as stream:
            stream.write(json.dumps(batches[learnt[0]]) + "\n")
        learnt[0] += 1

    TokenLoader.read, TrainStep.update = recorded_read, recorded_update  # type: ignore[method-assign]


def needs_all_tokens(context: JobContext) -> None:
    """On rank 1 the logits of the check differ."""
    from ropewalk.jobs.training.loop import tail

    if context.rank == 1:
        tail._difference = lambda *_: "planted"


def bad_sample(context: JobContext) -> None:
    """Each sample of $BAD_SAMPLE makes the loss one of $BAD_LOSS, in turns, times what it is (nan: not a number)."""
    from ropewalk.datapipe.loader.loader import TokenLoader
    from ropewalk.jobs.training.loop.objective import NextToken

    read, call = TokenLoader.read, NextToken.__call__
    bad, factors = ([*map(kind, os.environ[name].split(","))] for name, kind in (("BAD_SAMPLE", int), ("BAD_LOSS", float)))

    def marking_read(self: TokenLoader, positions: Any) -> Any:
        batch = read(self, positions)
        for row, position in zip(batch, positions, strict=True):
            if position in bad:
                row[:] = MARK - bad.index(position) % len(factors)
        return batch

    def marked_loss(self: NextToken, model: Any, batch: Any) -> Any:
        terms = call(self, model, batch)
        for number, factor in enumerate(factors):
            if (batch["labels"] == MARK - number).any():
                terms = terms._replace(loss_sum=terms.loss_sum * factor)
        return terms

    TokenLoader.read, NextToken.__call__ = marking_read, marked_loss  # type: ignore[method-assign]


def stall_in_save(context: JobContext) -> None:
    """The second save hangs after its data are written and before it is committed; the file `stalled` says so."""
    from ropewalk.sharding.checkpoints.checkpoint import Checkpoints

    commit = Checkpoints._commit
    saves = [0]

    def stalling(self: Checkpoints, *arguments: Any) -> None:
        saves[0] += 1
        if saves[0] == 2:
            (context.run.path / "stalled").touch()
            while True:
                time.sleep(0.1)
        commit(self, *arguments)

    Checkpoints._commit = stalling  # type: ignore[method-assign]


def copy_at_the_last_moment(context: JobContext) -> None:
    """The state is copied for a checkpoint only when the loop waits for that."""
    import threading

    from ropewalk.sharding.checkpoints.checkpoint import Checkpoints
    from ropewalk.sharding.checkpoints.staging import Staging

    waiting, copy, wait_for_copy, finish = threading.Event(), Staging.copy, Checkpoints.wait_for_copy, Checkpoints._finish_save

    def late_copy(self: Staging) -> Any:
        assert waiting.wait(60), "the loop has changed the state, or waits for something else"
        waiting.clear()
        return copy(self)

    def announced(action: Any) -> Any:
        def announce(self: Checkpoints) -> None:
            if self.copying:
                waiting.set()
            action(self)

        return announce

    Staging.copy = late_copy  # type: ignore[method-assign]
    Checkpoints.wait_for_copy = announced(wait_for_copy)  # type: ignore[method-assign]
    Checkpoints._finish_save = announced(finish)  # type: ignore[method-assign]


def stall_in_step(context: JobContext) -> None:
    """Step 5 hangs in the middle, its gradients there and not applied."""
    from ropewalk.jobs.training.loop.update.step import TrainStep

    reduce_stats = TrainStep.reduce_stats
    steps = [0]

    def stalling(self: TrainStep, *arguments: Any, **keywords: Any) -> Any:
        steps[0] += 1
        if steps[0] == 5:
            (context.run.path / "stalled").touch()
            while True:
                time.sleep(0.1)
        return reduce_stats(self, *arguments, **keywords)

    TrainStep.reduce_stats = stalling  # type: ignore[method-assign]


def full_disk(context: JobContext) -> None:
    """Rank 1 cannot write its part of a checkpoint."""
    from ropewalk.cluster.storage import StoragePath

    create = StoragePath.create

    def refusing(self: StoragePath, name: str) -> Any:
        if "rank-00001" in name:
            raise OSError(28, "No space left on device", name)
        return create(self, name)

    StoragePath.create = refusing  # type: ignore[method-assign]


def resave(context: JobContext) -> None:
    """Save what was loaded and stop, before anything is learnt."""
    from ropewalk.jobs.training.loop.trainer import Trainer

    def save_and_leave(self: Trainer) -> None:
        self.checkpoints.last_step = None
        self._leave()

    Trainer.run = save_and_leave  # type: ignore[assignment, method-assign]


def pin_first_checkpoint(context: JobContext) -> None:
    """Somebody needs the first checkpoint, from the moment it is complete."""
    from ropewalk.sharding.checkpoints.layout import is_pinned, pin
    from ropewalk.sharding.checkpoints.retention import Retention

    prune = Retention.prune

    def pinning(self: Retention, best: int | None) -> None:
        if not is_pinned(self.root, 3):
            pin(self.root, 3, "test")
        prune(self, best)

    Retention.prune = pinning  # type: ignore[method-assign]


def record_gradients(context: JobContext) -> None:
    """Write down how many elements of gradients a rank holds as each micro-batch of a step begins: [full ones, its shards]."""
    from ropewalk.jobs.training.loop.update import step

    set_micro_batch = step.set_micro_batch

    def recorded(modules: Any, **how: Any) -> None:
        whole = shards = 0
        for group in (group for module in modules for group in module._get_fsdp_state()._fsdp_param_groups):
            for parameter in group.fsdp_params:
                unsharded = getattr(parameter, "_unsharded_param", None)
                gradients = [parameter.unsharded_accumulated_grad, None if unsharded is None else unsharded.grad]
                whole += sum(gradient.numel() for gradient in gradients if gradient is not None)
                reduced = parameter.sharded_param.grad
                shards += 0 if reduced is None else reduced.to_local().numel()
        with (context.run.path / f"gradients-{context.rank}.jsonl").open("a") as stream:
            stream.write(json.dumps([whole, shards]) + "\n")
        set_micro_batch(modules, **how)

    step.set_micro_batch = recorded  # type: ignore[assignment]


def expect_determinism(context: JobContext) -> None:
    """Each step finds torch's deterministic algorithms switched on."""
    import torch

    from ropewalk.jobs.training.loop.update.step import TrainStep

    backward = TrainStep.backward

    def checked(self: TrainStep, *arguments: Any) -> Any:
        assert torch.are_deterministic_algorithms_enabled()
        return backward(self, *arguments)

    TrainStep.backward = checked  # type: ignore[method-assign]


def freeze(context: JobContext) -> None:
    """The attention of the first layer is not trained."""
    from ropewalk.jobs.training.loop import model

    parallelize = model.parallelize

    def frozen(skeleton: Any, *rest: Any, **keywords: Any) -> Any:
        skeleton.model.layers[0].self_attn.requires_grad_(False)
        return parallelize(skeleton, *rest, **keywords)

    model.parallelize = frozen


def freeze_and_resave(context: JobContext) -> None:
    """Both: what was loaded is saved again before anything is learnt."""
    freeze(context)
    resave(context)


def record_second_gradient(context: JobContext) -> None:
    """Write down the whole mean gradient of the second step, by parameter, before it is clipped."""
    from safetensors.torch import save_file

    from ropewalk.jobs.training.loop.update.step import TrainStep

    update = TrainStep.update
    steps = [0]

    def recorded(self: TrainStep, stats: Any, *arguments: Any) -> None:
        steps[0] += 1
        if steps[0] == 2:
            parameters = {name: p for name, p in self.state.model.named_parameters() if p.grad is not None}
            results = {name: p.grad.full_tensor() / stats.weight for name, p in parameters.items()}  # type: ignore[union-attr]
            if context.rank == 0:
                save_file(results, context.run.path / "gradient.safetensors")
        update(self, stats, *arguments)

    TrainStep.update = recorded  # type: ignore[method-assign]


def slow_answers(context: JobContext) -> None:
    """Each answer of an evaluation takes a moment longer, so that a kill comes between two of them."""
    from ropewalk.jobs.runs.program.finished import Ledger

    add = Ledger.add

    def slow_add(self: Ledger, key: str, record: Any) -> None:
        add(self, key, record)
        time.sleep(0.02)

    Ledger.add = slow_add  # type: ignore[method-assign]


def stall_rollouts(context: JobContext) -> None:
    """Stand still in a call of the ledger: TEST_STALL is METHOD:before|after:N:RANK, of the N-th call of that rank."""
    from ropewalk.jobs.training.rollouts.ledger import Round

    name, moment, number, rank = os.environ["TEST_STALL"].split(":")
    if context.rank != int(rank):
        return
    method, calls = getattr(Round, name), [0]

    def stalling(self: Any, *arguments: Any, **keywords: Any) -> Any:
        calls[0] += 1
        if moment == "before" and calls[0] == int(number):
            _stall(context)
        result = method(self, *arguments, **keywords)
        if moment == "after" and calls[0] == int(number):
            _stall(context)
        return result

    setattr(Round, name, stalling)


def _stall(context: JobContext) -> None:
    (context.run.path / "stalled").touch()
    time.sleep(3600)


def stop_while_drawing(context: JobContext) -> None:
    """The run is asked to stop while the rollouts of its third step are drawn."""
    from ropewalk.jobs.training.rollouts.ledger import Round

    put = Round.put

    def asking(self: Any, *arguments: Any) -> Any:
        result = put(self, *arguments)
        if self.position == 32 and context.rank == 1:
            (context.run.path / "stop-here").touch()
        return result

    Round.put = asking  # type: ignore[method-assign]


def die_after_answers(context: JobContext) -> None:
    """Kill this rank by SIGKILL after it has written down its seventh answer."""
    import signal

    from ropewalk.jobs.runs.program.finished import Ledger

    add, count = Ledger.add, [0]

    def counted(self: Ledger, *arguments: Any) -> None:
        add(self, *arguments)
        count[0] += 1
        if count[0] == 7:
            os.kill(os.getpid(), signal.SIGKILL)

    Ledger.add = counted  # type: ignore[method-assign]


def short_rounds(context: JobContext) -> None:
    """The ranks of an audit agree on a stop after every answer."""
    from ropewalk.jobs.evaluation.audit.asking import ask

    ask.ROUND_SECONDS = 0.0


def stall_in_reference(context: JobContext) -> None:
    """The second chunk of log-probabilities of this rank is never written; the file `stalled` says so."""
    from ropewalk.jobs.training.loop.chunks import Chunks

    write, calls = Chunks.write, [0]

    def stalling(self: Chunks, *arguments: Any) -> int:
        calls[0] += 1
        if calls[0] == 2:
            _stall(context)
        return write(self, *arguments)

    Chunks.write = stalling  # type: ignore[method-assign]


def stall_in_chunk(context: JobContext) -> None:
    """The second chunk that a rank computes hangs; the file `stalled` says so once rank 0's first is kept."""
    from ropewalk.jobs.training.distill.cache import _ChunkComputation

    chunk = _ChunkComputation.chunk
    chunks = [0]

    def stalling(self: _ChunkComputation, *arguments: Any) -> Any:
        chunks[0] += 1
        if chunks[0] == 2:
            (context.run.path / "stalled").touch()
            while True:
                time.sleep(0.1)
        return chunk(self, *arguments)

    _ChunkComputation.chunk = stalling  # type: ignore[method-assign]


def out_of_memory(context: JobContext) -> None:
    """On rank 1 a pass over more than $MOST_SAMPLES samples ends in an out-of-memory error, at the step $EXHAUSTED_STEP."""
    import torch

    from ropewalk.jobs.training.loop.objective import NextToken
    from ropewalk.jobs.training.loop.update.step import TrainStep

    call, backward = NextToken.__call__, TrainStep.backward
    most, when = int(os.environ["MOST_SAMPLES"]), int(os.environ["EXHAUSTED_STEP"])
    steps: list[int] = []

    def counted_backward(self: TrainStep, batch: Any, step: int) -> Any:
        steps.append(step)
        return backward(self, batch, step)

    def exhausted_call(self: NextToken, model: Any, batch: Any) -> Any:
        terms = call(self, model, batch)
        if len(batch["labels"]) > most and steps and steps[-1] >= when:
            raise torch.OutOfMemoryError("CUDA out of memory: planted")
        return terms

    if context.rank == 1:
        TrainStep.backward, NextToken.__call__ = counted_backward, exhausted_call  # type: ignore[method-assign]


def slow_rank(context: JobContext) -> None:
    """By the clock of steps, which nothing else moves, a backward pass takes rank 1 twice as long as the others."""
    from types import SimpleNamespace

    from ropewalk.jobs.training.loop.update import step_clock
    from ropewalk.jobs.training.loop.update.step import TrainStep

    backward, now = TrainStep.backward, [0.0]

    def slow(self: TrainStep, *arguments: Any) -> Any:
        now[0] += 0.06 * (1 + context.rank)
        return backward(self, *arguments)

    TrainStep.backward = slow  # type: ignore[method-assign]
    step_clock.time = SimpleNamespace(perf_counter=lambda: now[0])  # type: ignore[assignment]

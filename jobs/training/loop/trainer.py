"""The training loop: batch, backward, reduce stats, update, read the figures of the step before, validate, checkpoint, stop?"""

from collections import deque
from collections.abc import Generator
from contextlib import closing, suppress
from dataclasses import dataclass, field

from ropewalk.cluster.engines.crashes import is_lost_peer
from ropewalk.cluster.errors import NumericsError, StopRequested
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.phase_clock import Phase
from ropewalk.datapipe.loader.prefetch import prefetch, tell_ahead
from ropewalk.jobs.training.loop.anomalies import Anomalies, problem_of
from ropewalk.jobs.training.loop.batch import Batch
from ropewalk.jobs.training.loop.config import TrainingConfig
from ropewalk.jobs.training.loop.integrity.checks import Integrity
from ropewalk.jobs.training.loop.report.inspection import Inspection
from ropewalk.jobs.training.loop.report.layers import LayerWatch
from ropewalk.jobs.training.loop.report.report import Report
from ropewalk.jobs.training.loop.source import Source, reader_for
from ropewalk.jobs.training.loop.state_store import StateStore
from ropewalk.jobs.training.loop.tail import check_once
from ropewalk.jobs.training.loop.update.copy_interval import CopyInterval
from ropewalk.jobs.training.loop.update.garbage import collect_at, collected_by_step
from ropewalk.jobs.training.loop.update.optimizer import learning_rate
from ropewalk.jobs.training.loop.update.state import Progress, TrainState
from ropewalk.jobs.training.loop.update.step import PendingStep, StepStats, TrainStep
from ropewalk.jobs.training.loop.update.step_clock import StepPhase
from ropewalk.jobs.training.loop.validator import Validator
from ropewalk.sharding.checkpoints.checkpoint import Checkpoints
from ropewalk.sharding.checkpoints.layout import directory_of


@dataclass(kw_only=True)
class Trainer:
    """Trains until all steps are done, validation stops improving, or the run is told to stop."""

    context: JobContext
    config: TrainingConfig
    state: TrainState
    train_step: TrainStep
    source: Source
    validator: Validator
    checkpoints: Checkpoints
    store: StateStore
    interval: CopyInterval
    report: Report
    layers: LayerWatch | None
    inspection: Inspection
    integrity: Integrity | None = None
    _anomalies: Anomalies = field(init=False)
    _pending: deque[PendingStep] = field(default_factory=deque, init=False)  # steps whose figures have not been read
    _stopping: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        # metrics of steps before a checkpoint are durable before it, since those steps are not repeated
        self.checkpoints.before_commit = self.report.make_durable
        self.checkpoints.after_commit = self.source.committed
        self._anomalies = Anomalies(self.config.anomaly, self.report)

    @property
    def progress(self) -> Progress:
        return self.state.progress

    def run(self) -> dict[str, object]:
        """Train to the end from the current progress; returns the job's results. Raises StopRequested."""
        try:
            self._check_head()
            self.state.model.train()
            while not self._done:
                with closing(self.batches()) as batches, collected_by_step(freeze=self.context.line is None):
                    self.train_on(batches)
            return self._finish()
        except BaseException as error:
            with suppress(Exception):  # this error, or a consequence of it
                if isinstance(error, NumericsError):
                    self.report.release()
                else:
                    self._report_ended()
                if not isinstance(error, StopRequested):
                    self.report.lose()
                self.report.flush()
            if self.context.stays and is_lost_peer(error):
                self.checkpoints.abandon()
            raise
        finally:
            self.context.heart.beat(Phase.LEAVING, self.progress.step)
            self.report.end()

    def _report_ended(self) -> None:
        """Report the pending steps that have ended, before the run leaves because of an error."""
        while self._pending and self._pending[0].values.ready:
            pending = self._pending.popleft()
            stats = pending.read()
            if not stats.applied:
                return
            self._count(pending, stats)

    def _check_head(self) -> None:
        """Report if the model cannot compute its logits in chunks; a reward model has none."""
        if getattr(self.state.model, "get_output_embeddings", lambda: None)() is None:
            return
        attempt = (self.context.run.path, self.context.attempt)
        if (reason := check_once(self.state.model, self.train_step.group, attempt)) is not None:
            self.report.event("whole_logits", reason=reason)

    @property
    def _done(self) -> bool:
        return self.progress.finished or self.progress.step >= self.config.steps

    def batches(self) -> Generator[Batch, None, None]:
        """Yield this rank's samples, step by step from the current progress."""
        num_steps = self.config.steps - self.progress.step
        plan = self.train_step.plan.steps(self.progress.position, num_steps)
        source = self.source
        read = reader_for(self.train_step.group.device, source.read)
        if source.prefetchable:
            plan = tell_ahead(plan, source.expect)
        with closing(prefetch(read, plan) if source.prefetchable else (read(positions) for positions in plan)) as batches:
            for _ in range(num_steps):
                try:
                    source.prepare(self.state)
                except StopRequested:
                    self._leave()
                yield next(batches)

    def train_on(self, batches: Generator[Batch, None, None]) -> None:
        """Train on batch after batch, until the end or until a rollback requires other batches.

        Figures are read one step late, so that a GPU need not wait for the host, or at once where something depends on them.
        """
        first, self._stopping = True, False
        self.report.meter.restart()
        self._await_data()
        for batch in batches:
            self.context.enter(Phase.STEP, self.progress.step)
            self.train_step.clock.end(StepPhase.DATA)
            self.inspection.begin_step(self.progress.step + 1)
            self._start_step(batch)
            self.interval.end_step(self.progress.step)
            if not self._settle(0 if first or self._needs_figures else 1) or (self._check_due and not self._check()):
                return
            if first:
                self.report.event("first_step", step=self.progress.step)
                first = False
            if self._due(self.config.validation.every_steps):
                if self._validate() and self.config.validation.keep_best:
                    self.store.save()
                self.progress.finished = self.validator.is_over(self.state)
            if self._due(self.config.checkpoint.every_steps) and not self.store.is_saved:
                self.store.save()
            if self._copies_now:
                self.store.copy_to_memory()
            if self._done:
                return
            if self._stopping and not self._settle(0):
                return
            if self._stopping:
                self._leave()
            collect_at(self.progress.step)
            self._await_data()

    def _await_data(self) -> None:
        self.context.enter(Phase.DATA, self.progress.step)
        self.train_step.clock.begin()

    def _validate(self) -> bool:
        """Validate; returns True if the loss is the best so far."""
        self.context.enter(Phase.VALIDATION, self.progress.step)
        return self.validator.validate(self.state, self.train_step.objective)

    def _due(self, every_steps: int) -> bool:
        return self.progress.step % every_steps == 0 and not self._done

    @property
    def _copies_now(self) -> bool:
        """True if the state after this step is copied to the memory of nodes."""
        return self.interval.due(self.progress.step) and not self._done

    @property
    def _needs_figures(self) -> bool:
        """True if something follows this step that depends on its figures: the end, a validation, a save, new samples."""
        return self._may_save or self._check_due or self._copies_now or not self.source.prefetchable

    @property
    def _may_save(self) -> bool:
        return self._due(self.config.validation.every_steps) or self._due(self.config.checkpoint.every_steps) or self._done

    # --- checks for silent corruption

    @property
    def _check_due(self) -> bool:
        """True if the state after this step is checked: at an interval, and before it is saved."""
        return self.integrity is not None and (self._may_save or self.integrity.due(self.progress.step))

    def _check(self) -> bool:
        """Check the state; returns False if the run went back, since it is corrupted."""
        return self.integrity is None or self.integrity.check(self.progress.step) or self._restore(self.integrity)

    def _restore(self, integrity: Integrity) -> bool:
        """Go back to the newest state that passed a check; returns False."""
        integrity.count_return()
        return self._go_back(integrity.verified)

    def _go_back(self, step: int) -> bool:
        """Go back to the newest state up to a step; returns False."""
        self._pending.clear()  # steps that are undone
        self.store.go_back(step)
        return False

    def _start_step(self, batch: Batch) -> None:
        """Start backward and update, which the device masks if the loss is not normal."""
        progress, step = self.progress, self.progress.step + 1
        sums = self.train_step.backward(batch, progress.step)
        self.inspection.end_backward(step)
        flags = {"stop": self.context.stop_requested(), "save_failed": self.checkpoints.failed}
        stats = self.train_step.reduce_stats(sums, **flags, inspection=self.inspection.requested())
        layers = self.layers.measure(stats.weight) if self.layers is not None and self.layers.due(step) else None
        if self.checkpoints.copying:
            self.context.enter(Phase.CHECKPOINT, self.progress.step)
            self.checkpoints.wait_for_copy()
            self.context.enter(Phase.STEP, self.progress.step)
        rate = learning_rate(self.config.optim, progress.step, self.config.steps)
        self.train_step.update(stats, rate)
        if self.integrity is not None:
            self.integrity.batch = batch
        progress.step, progress.position = step, progress.position + self.train_step.plan.global_batch
        earlier = self._pending[-1].values if self._pending else None
        self._pending.append(self.train_step.pending(stats, rate, layers, earlier))

    def _settle(self, most: int) -> bool:
        """Read figures until those of at most `most` steps are pending; returns False if the run rolled back."""
        while len(self._pending) > most:
            pending = self._pending.popleft()
            stats = pending.read()
            if stats.save_failed:
                self.context.enter(Phase.CHECKPOINT, self.progress.step)
                self.checkpoints.wait()  # raises the error
            self._stopping |= stats.stop
            self.inspection.agree(stats.inspection)
            if self.integrity is not None and not self.integrity.passes(stats):
                return self._restore(self.integrity)
            if (refuted := self.store.refuted(stats)) is not None:
                return self._go_back(refuted - 1)
            if stats.applied:
                self._count(pending, stats)
            elif not self._handle_anomaly(stats):
                return False
        return True

    def _count(self, pending: PendingStep, stats: StepStats) -> None:
        """Count a step that was applied, and report it."""
        self.progress.count(stats.loss, stats.watch)
        memory = self.checkpoints.memory
        self.report.holds = memory is not None and self.interval.each_step and not memory.failing
        if self.layers is not None and pending.layers is not None:
            self.report.layers(stats, self.layers.stats(pending.layers.read()))
        self.report.step(stats)

    # --- anomalies

    def _handle_anomaly(self, stats: StepStats) -> bool:
        """Apply the policy; returns True if the run continues with the next batch, False if it rolled back."""
        self.context.enter(Phase.REPORT, self.progress.step)
        if self.integrity is not None and not self.integrity.confirms(stats, problem_of(stats, self.progress.watch)):
            return self._restore(self.integrity)
        what = self._anomalies.add(stats, self.progress.watch, self.train_step.plan.global_batch)
        if self.config.anomaly.policy == "skip":
            return True
        self._pending.clear()  # steps that are undone
        if not self.store.roll_back():
            raise NumericsError(f"{what}, and there is no checkpoint to roll back to; set anomaly.policy to skip")
        self.progress.position = max(stats.position, self.progress.position)
        return False

    # --- the end

    def _leave(self) -> None:
        """Save unless this step is saved, and stop. Raises StopRequested."""
        assert not self._pending
        self._check()
        if not self.store.is_saved and not self.store.hand_over():
            self.store.save()
        self.store.close()
        self.report.event("stopped", step=self.progress.step)
        self.report.close(self.progress.step)
        raise StopRequested(f"saved step {self.progress.step}")

    def _finish(self) -> dict[str, object]:
        """Validate, save and report; a run that had finished before returns its results again."""
        progress = self.progress
        if not progress.finished or not self.store.is_saved:
            self._validate()
            progress.finished = True
            self.store.save()
        self.store.close()
        self.report.close(progress.step)
        return {
            "step": progress.step,
            "train/loss": progress.loss,
            **progress.validation,
            "tokens": progress.position * self.source.tokens_per_sample,
            "checkpoint": directory_of(progress.step),
        }

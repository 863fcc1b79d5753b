"""Driver of a sweep: Ray Tune, in a small Ray cluster, searches the configuration of another job; each trial is a run."""

import logging
import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import yaml

from ropewalk.cluster.backends.profiles import PROFILES_VARIABLE, load_backend
from ropewalk.cluster.engines.ray import RayNode, short_scratch, start_ray, stop_ray
from ropewalk.cluster.errors import RopewalkError, StopRequested
from ropewalk.cluster.gpus import DEVICES_VARIABLE, ORDER_VARIABLE, deal_devices, device_order, machine_devices
from ropewalk.cluster.process.forking import preload_modules
from ropewalk.cluster.process.scratch import remove_scratch
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import write_atomically
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.orchestration.sweep.checks import concurrent_trials, decision_steps, sample_config, steps_of, trial_defaults
from ropewalk.jobs.orchestration.sweep.config import CLUSTERS, SweepConfig, SweepContext
from ropewalk.jobs.orchestration.sweep.records import (
    SWEEP_CANCELLED,
    WITH_THE_SWEEP,
    TrialRecord,
    TrialState,
    read_records,
    write_record,
)
from ropewalk.jobs.orchestration.sweep.report.html_report import write_readable
from ropewalk.jobs.orchestration.sweep.report.results import read_sweep
from ropewalk.jobs.orchestration.sweep.trials.allocation import placement
from ropewalk.jobs.orchestration.sweep.trials.checkpoint_reference import release_all
from ropewalk.jobs.orchestration.sweep.trials.trial_runs import await_end, end_run
from ropewalk.jobs.orchestration.sweep.watchdog import Watchdog
from ropewalk.jobs.runs.show.status import final_outcome
from ropewalk.jobs.runs.submit.dry_run import dry_run_directory
from ropewalk.jobs.runs.submit.launcher import launcher
from ropewalk.jobs.runs.submit.records import make_record

log = logging.getLogger(__name__)

ADDRESS = "127.0.1.1"  # Ray serves only this machine; 127.0.0.1 would make it listen on an external address
OPEN_TRIAL_ENDS = {  # final states of trials that were open when all trials were stopped
    "cancelled": (TrialState.CANCELLED, WITH_THE_SWEEP),
    "budget": (TrialState.STOPPED, "the budget is spent"),
}
ORIGIN = ("created", "versions", "command", "code", "directory", "project")  # keys of the sweep's record that trials inherit

# settings of Ray Tune and Ray, read when they are imported or started
SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial may end without a value
    "TUNE_GLOBAL_CHECKPOINT_S": str(10**9),  # trial records hold the sweep's state
    "TUNE_FORCE_TRIAL_CLEANUP_S": str(3600),  # an actor may wait long for its run to save
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


class SweepError(RopewalkError):
    """The sweep has no result."""


def main(context: JobContext) -> dict[str, object]:
    """Search until all trials have ended and return the best one; continues the work of earlier attempts."""
    return Driver(context, context.config(SweepConfig)).drive()


class Driver:
    """One attempt of a sweep."""

    def __init__(self, context: JobContext, config: SweepConfig) -> None:
        self.context, self.config, self.sweep = context, config, context.run
        self.sample = sample_config(config)
        trials_on = self.sweep.record["trials_on"]
        self.cluster, self.local = str(trials_on["cluster"]), trials_on["backend"] == "local"
        resources = self.sample.resources
        self.gpus = resources.nodes.most * resources.gpus if self.local else 0
        if self.local:
            deal_devices(resources)  # raises if there are too few GPUs, for which Tune would wait forever
        self.slots = concurrent_trials(config, resources, str(trials_on["backend"]))
        # profiles of the time of submission; all processes that handle trials find them by the variable
        write_atomically(self.sweep.path / CLUSTERS, yaml.safe_dump(self.sweep.record["clusters"]))
        os.environ[PROFILES_VARIABLE] = str(self.sweep.path / CLUSTERS)

    def drive(self) -> dict[str, object]:
        """Search and return the results. Raises StopRequested if a later attempt continues, SweepError if there is no result."""
        load_backend(self.cluster).check_rights()
        scratch = self._scratch()
        self._reopen()
        try:
            with self._launcher() as folder:
                context = self._sweep_context(scratch, folder)
                watchdog = Watchdog(context, self.context.stop_requested, self.config.num_trials)
                with self._ray(scratch, watchdog):
                    broken = self._tune(context)
                if broken and not watchdog.stop_reason:
                    raise RuntimeError(f"the actors of trials {broken} failed; rank-0.log has their errors")
                return self._conclude(context, watchdog)
        finally:
            remove_scratch(scratch)

    def _scratch(self) -> Path:
        """Return a folder for temporary files; a shared one if trials' actors run on several nodes."""
        if not self.config.allocation:
            return short_scratch()
        path = self.sweep.attempt_dir(self.context.attempt) / "scratch"
        path.mkdir(exist_ok=True)
        return path

    def _launcher(self) -> AbstractContextManager[Path]:
        if self.config.allocation:  # each actor supervises its trial on the nodes reserved by Ray
            return nullcontext(Path())
        output = self.sweep.log_dir(self.context.attempt) / "launcher.log"
        return launcher(output, self._environment(), self._modules())

    def _sweep_context(self, scratch: Path, launcher_folder: Path) -> SweepContext:
        return SweepContext(
            sweep=self.sweep,
            attempt=self.context.attempt,
            config=self.config,
            cluster=self.cluster,
            scratch=scratch,
            launcher=launcher_folder,
            gpus=self.gpus,
            every_steps=decision_steps(self.config, self.sample),
            total_steps=steps_of(self.sample),
            defaults=trial_defaults(self.config, self.sample, self.sweep.id),
            origin={key: self.sweep.record[key] for key in ORIGIN if key in self.sweep.record},
        )

    def _environment(self) -> dict[str, str]:
        variables = {PROFILES_VARIABLE: os.environ[PROFILES_VARIABLE]}
        if self.local and "OMP_NUM_THREADS" not in os.environ:  # trials share this machine
            variables["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // self.slots))
        return variables

    def _modules(self) -> list[str]:
        """Return modules to import once for all trials on this machine."""
        if not self.local:
            return []
        record = make_record(self.config.job, self.sample, self.cluster, {})
        return ["ropewalk.cluster.backends.local.supervisor_main", *preload_modules(dry_run_directory(self.sample, record))]

    def _reopen(self) -> None:
        """Reopen trials that were cancelled together with the sweep, now that the sweep is resumed."""
        times = [float(event["time"]) for event in self.sweep.read_events(afresh=True) if event["event"] == SWEEP_CANCELLED]
        for record in read_records(self.sweep):
            if record.with_sweep or (times and self._cancelled_since(record, times[-1])):
                record.state, record.cause, record.with_sweep, record.ended = TrialState.PAUSED, "", False, None
                write_record(self.sweep, record)

    def _cancelled_since(self, record: TrialRecord, time: float) -> bool:
        """Return True if the trial's run was cancelled after that time without a driver to record it."""
        outcome = final_outcome(RunDir(self.sweep.path.parent / record.runs[-1])) if record.runs else None
        cancelled = outcome is not None and outcome.state is RunState.CANCELLED and outcome.ended >= time
        return cancelled and not record.state.final

    @contextmanager
    def _ray(self, scratch: Path, watchdog: Watchdog) -> Iterator[None]:
        """Connect to the Ray cluster for Tune: that of the sweep's allocation, or a small local one."""
        os.environ.update(SETTINGS)
        process = None if self.config.allocation else self._start_ray(scratch)
        try:
            import ray

            address = (scratch / "address").read_text() if process else os.environ["RAY_ADDRESS"]
            ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
            watchdog.start(process)
            try:
                yield
            finally:
                ray.shutdown()
        finally:
            watchdog.stop()
            if process is not None:
                stop_ray(process, scratch)

    def _start_ray(self, scratch: Path) -> subprocess.Popen[bytes]:
        """Start a local Ray with one CPU per concurrent trial; these are slots, not cores."""
        devices = machine_devices() if self.gpus else []
        os.environ[DEVICES_VARIABLE] = ",".join(devices)  # Ray assigns these to trials
        os.environ[ORDER_VARIABLE] = device_order()
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # lives in memory only
        node = RayNode(
            run=self.sweep,
            attempt=self.context.attempt,
            index=0,
            num_nodes=1,
            address=ADDRESS,
            cpus=self.slots,
            gpus=len(devices),
            stop_flag=self.context.stop_flag or scratch / "stop",
            for_tune=True,
        )
        return start_ray(node, scratch, head=True)

    def _tune(self, context: SweepContext) -> list[int]:
        """Run Tune until all trials have ended or must stop; return trials whose actors failed."""
        from ray import tune

        from ropewalk.jobs.orchestration.sweep.trials.schedulers import make_scheduler
        from ropewalk.jobs.orchestration.sweep.trials.tune import Decisions, RecordedSearch, RunTrainable

        logging.getLogger("ray.tune.analysis").setLevel(logging.ERROR)  # it warns of results that Tune was configured not to keep
        # a population starts as a whole
        at_once = self.config.num_trials if self.config.scheduler == "pbt" else self.slots
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(at_once)  # start their actors at the same time
        decisions = Decisions(context)
        resources = placement(self.sample.resources) if self.config.allocation else {"CPU": 1, "GPU": self.gpus}
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(RunTrainable, context=context), resources),
            tune_config=tune.TuneConfig(
                num_samples=self.config.num_trials,
                search_alg=RecordedSearch(context, at_once=at_once),
                scheduler=make_scheduler(self.config, self.sample, context),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(context.scratch),
                verbose=0,
                callbacks=[decisions],
                failure_config=tune.FailureConfig(max_failures=3),  # failures of actors; a failed run is not a failed actor
            ),
        )
        tuner.fit()
        return decisions.broken

    # --- the end

    def _conclude(self, context: SweepContext, watchdog: Watchdog) -> dict[str, object]:
        reason = watchdog.stop_reason or context.stop_reason()  # trials may have noticed a cancel request first
        if reason == "preempted" and (self.sweep.cancel_requested or self.sweep.orphaned):
            reason = "cancelled"  # the signal arrived before the request
        if reason == "preempted":
            raise StopRequested("the trials keep running; the next attempt follows them")
        self._end_runs(context, reason)
        watchdog.publish()
        if reason == "cancelled":
            raise StopRequested("all trials have saved and exited")
        causes = [record.cause for record in read_records(self.sweep) if record.state is TrialState.FAILED]
        if reason == "failures":
            raise SweepError(f"{watchdog.num_failed} trials failed; first cause: {causes[0] if causes else ''}")
        sweep_results = read_sweep(self.sweep)
        write_readable(sweep_results)
        results = sweep_results.summary()
        if results["best_trial"] is None:
            raise SweepError(f"no trial reported {self.config.metric}; {causes[0] if causes else 'none ran long enough'}")
        return results

    def _end_runs(self, context: SweepContext, reason: str) -> None:
        """End the runs of all trials, so that none outlives the sweep, and set the final state of open trials."""
        runs: list[RunDir] = []
        for record in read_records(self.sweep):
            if not record.state.final:
                state, cause = OPEN_TRIAL_ENDS.get(reason, (TrialState.CANCELLED, "the sweep ended before it"))
                record.end(state, cause, with_sweep=reason == "cancelled")
                write_record(self.sweep, record)
            runs += map(context.run, record.runs)
        open_runs = [run for run in runs if final_outcome(run) is None]
        for run in open_runs:
            run.request_cancel()
        for run in open_runs:
            end_run(context, run)
        for run in runs:
            if run.attempts():
                await_end(run)
            if self.config.scheduler == "pbt":
                release_all(self.sweep, run)

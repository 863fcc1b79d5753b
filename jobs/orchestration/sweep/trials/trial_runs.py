"""Create and end the runs of a sweep's trials."""

import logging
import time

from ropewalk.cluster.backends.profiles import backend_of, load_backend
from ropewalk.cluster.config import JobConfig
from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.errors import BackendError, RopewalkError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.orchestration.sweep.config import SweepContext
from ropewalk.jobs.orchestration.sweep.records import TrialRecord
from ropewalk.jobs.orchestration.sweep.search.space import merge_parameters
from ropewalk.jobs.registry import config_of, find_job
from ropewalk.jobs.runs.show.follow import Watch
from ropewalk.jobs.runs.show.status import final_outcome
from ropewalk.jobs.runs.submit.launcher import ask
from ropewalk.jobs.runs.submit.records import child_packages_record, make_record

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
EXIT_SECONDS = 60.0  # in addition to the run's grace period for saving


def trial_config(context: SweepContext, record: TrialRecord) -> JobConfig:
    """Return the job's configuration with a trial's parameters, and the checkpoint that it starts from, if any."""
    name = context.config.name or str(context.sweep.record["job"])
    values = {**record.parameters, "name": f"{name}-trial-{record.trial}", **context.defaults}
    if record.lineage:
        source = record.lineage[-1]
        values["start_from"] = {"run": source["from_run"], "step": source["step"]}
    return load_config(config_of(find_job(context.config.job)), merge_parameters(context.config.base, values))


def create_run(context: SweepContext, record: TrialRecord) -> RunDir:
    """Create the trial's next run without starting it, or take one that a killed driver had created."""
    config, sweep = trial_config(context, record), context.sweep
    existing = _find_unrecorded(sweep, record, str(config.name))
    if existing is not None:
        return existing
    run_record = make_record(context.config.job, config, context.cluster, context.origin)
    run_record |= child_packages_record(load_backend(context.cluster), config, sweep)
    return RunDir.create(str(config.name), {**run_record, "parent": sweep.id, "trial": record.trial}, sweep.path.parent)


def _find_unrecorded(sweep: RunDir, record: TrialRecord, name: str) -> RunDir | None:
    """Return a run of this trial that is missing in its record because the driver was killed after creating it."""
    for path in sorted(sweep.path.parent.glob(f"{name.lower()[:40]}-*")):
        run = RunDir(path)
        if run.id not in record.runs and (path / "run.yaml").is_file() and not run.attempts():
            run_record = run.record
            if run_record.get("parent") == sweep.id and run_record.get("trial") == record.trial:
                return run
    return None


def end_run(context: SweepContext, run: RunDir) -> None:
    """Make a run save a checkpoint and exit, and wait for that."""
    if final_outcome(run) is None:
        run.request_cancel()
        if not run.attempts():  # created but never started
            return
        try:
            if not context.config.allocation:
                ask(context.launcher, "cancel", run)
        except BackendError as error:
            log.warning("%s: %s", run.id, error)
    await_end(run)


def await_end(run: RunDir) -> bool:
    """Wait until a run that was told to end has ended and its processes have exited; False after a timeout."""
    grace = run.resources().grace_seconds
    watch, deadline = Watch(run), time.monotonic() + grace + EXIT_SECONDS
    while not watch.over():
        if time.monotonic() > deadline:
            log.error("%s was told to end and has not ended within %.0f s", run.id, grace + EXIT_SECONDS)
            return False
        time.sleep(POLL_SECONDS)
    while time.monotonic() < deadline and _is_supervised(run):
        time.sleep(POLL_SECONDS)
    return True


def _is_supervised(run: RunDir) -> bool:
    """Return True if the local supervisor still runs; it cleans up after writing the outcome."""
    try:
        return backend_of(run).states([run])[run.id].word == "supervised"
    except RopewalkError:
        return False

"""The runs of a sweep's trials: each is written down like any other run and says whose trial it is; and how one is ended."""

import logging
import time

from ropewalk.cluster.backends.profiles import load_backend
from ropewalk.cluster.config import JobConfig
from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.errors import BackendError, RopewalkError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.orchestration.sweep.context import SweepContext
from ropewalk.jobs.orchestration.sweep.records import TrialRecord
from ropewalk.jobs.orchestration.sweep.space import merged
from ropewalk.jobs.registry import config_of, find_job
from ropewalk.jobs.runs.show.follow import Watch
from ropewalk.jobs.runs.show.status import final_outcome
from ropewalk.jobs.runs.submit.launcher import ask
from ropewalk.jobs.runs.submit.submit import make_record

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
EXIT_SECONDS = 60.0  # besides the grace that a run has to save


def trial_config(context: SweepContext, record: TrialRecord) -> JobConfig:
    """The job's configuration with a trial's parameters, and with another trial's checkpoint if it starts from one."""
    name = context.config.name or str(context.sweep.record["job"])
    values = {**record.parameters, "name": f"{name}-trial-{record.trial}", **context.defaults}
    if record.lineage:
        source = record.lineage[-1]
        values["start_from"] = {"run": source["from_run"], "step": source["step"]}
    return load_config(config_of(find_job(context.config.job)), merged(context.config.base, values))


def create_run(context: SweepContext, record: TrialRecord) -> RunDir:
    """The trial's next run, written down and not started; one that a killed driver had written down is taken instead."""
    config, sweep = trial_config(context, record), context.sweep
    found = _unrecorded(sweep, record, str(config.name))
    if found is not None:
        return found
    made = make_record(context.config.job, config, context.cluster, context.origin)
    return RunDir.create(str(config.name), {**made, "parent": sweep.id, "trial": record.trial}, sweep.path.parent)


def _unrecorded(sweep: RunDir, record: TrialRecord, name: str) -> RunDir | None:
    """A run of this trial that its record does not name: the driver that made it was killed in between."""
    for path in sorted(sweep.path.parent.glob(f"{name.lower()[:40]}-*")):
        run = RunDir(path)
        if run.id not in record.runs and (path / "run.yaml").is_file() and not run.attempts():
            own = run.record
            if own.get("parent") == sweep.id and own.get("trial") == record.trial:
                return run
    return None


def end_run(context: SweepContext, run: RunDir) -> None:
    """Make a run save a checkpoint and exit, and wait until it has."""
    if final_outcome(run) is None:
        run.request_cancel()
        if not run.attempts():  # written down, never started
            return
        try:
            if not context.config.allocation:
                ask(context.launcher, "cancel", run)
        except BackendError as error:
            log.warning("%s: %s", run.id, error)
    await_end(run)


def await_end(run: RunDir) -> bool:
    """Wait until a run that was told to end is over and its processes have exited; False if that takes too long."""
    grace = run.resources().grace_seconds
    watch, deadline = Watch(run), time.monotonic() + grace + EXIT_SECONDS
    while not watch.over():
        if time.monotonic() > deadline:
            log.error("%s was told to end and has not, in %.0f s", run.id, grace + EXIT_SECONDS)
            return False
        time.sleep(POLL_SECONDS)
    while time.monotonic() < deadline and _supervised(run):
        time.sleep(POLL_SECONDS)
    return True


def _supervised(run: RunDir) -> bool:
    """Whether the local supervisor still runs: it cleans up after it has written the outcome."""
    try:
        return load_backend(str(run.record["cluster"])).states([run])[run.id].word == "supervised"
    except RopewalkError:
        return False

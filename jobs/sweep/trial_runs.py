"""The runs of a sweep's trials: each is written down like any other run, and says whose trial it is."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cluster.config import JobConfig, load_config
from cluster.run.directory import RunDir
from jobs.registry import config_of, find_job
from jobs.sweep.limits import trial_defaults
from jobs.sweep.records import TrialRecord
from jobs.sweep.space import merged

if TYPE_CHECKING:
    from jobs.sweep.config import SweepConfig


def trial_config(sweep: RunDir, config: "SweepConfig", record: TrialRecord) -> JobConfig:
    """The job's configuration with a trial's parameters, and with the donor's checkpoint if it goes on from one."""
    values = merged(config.base, {**record.parameters, "name": f"{_name(sweep, config)}-trial-{record.trial}"})
    sample = load_config(config_of(find_job(config.job)), values)
    more: dict[str, Any] = dict(trial_defaults(config, sample))
    if record.lineage:
        donor = record.lineage[-1]
        more["start_from"] = {"run": donor["from_run"], "step": donor["step"]}
    if sample.wandb.group is None:
        more["wandb.group"] = sweep.id
    return load_config(config_of(find_job(config.job)), merged(values, more))


def _name(sweep: RunDir, config: "SweepConfig") -> str:
    return config.name or str(sweep.record["job"])


def create_run(sweep: RunDir, config: "SweepConfig", record: TrialRecord, cluster: str, origin: Mapping[str, Any]) -> RunDir:
    """The trial's next run, written down and not started; one that a killed driver had written down is taken instead."""
    job_config = trial_config(sweep, config, record)
    found = _unrecorded(sweep, record, str(job_config.name))
    if found is not None:
        return found
    from jobs.runs.submit import make_record  # the masking of secrets and all that a run records is in one place

    made = make_record(config.job, job_config, cluster, origin)
    return RunDir.create(str(job_config.name), {**made, "parent": sweep.id, "trial": record.trial}, sweep.path.parent)


def _unrecorded(sweep: RunDir, record: TrialRecord, name: str) -> RunDir | None:
    """A run of this trial that the record does not know: whoever made it was killed before it could say so."""
    for path in sorted(sweep.path.parent.glob(f"{name.lower()[:40]}-*")):
        run = RunDir(path)
        if run.id not in record.runs and (path / "run.yaml").is_file() and not run.attempts():
            own = run.record
            if own.get("parent") == sweep.id and own.get("trial") == record.trial:
                return run
    return None


def origin_of_trials(sweep: RunDir) -> dict[str, Any]:
    """Code, versions and command as the sweep recorded them: trials run what was submitted with it."""
    record = sweep.record
    return {key: record[key] for key in ("created", "versions", "command", "code") if key in record}

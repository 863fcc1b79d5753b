"""Dry runs: a submission after all its checks, without files, and the script or manifest that it would use."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ropewalk.cluster.backends.base import Backend
from ropewalk.cluster.backends.profiles import load_backend
from ropewalk.cluster.config import JobConfig
from ropewalk.cluster.run.directory import RunDir, runs_root
from ropewalk.cluster.run.files import dated_label
from ropewalk.jobs.runs.show.view import view_of
from ropewalk.jobs.runs.submit.gpus import set_gpus
from ropewalk.jobs.runs.submit.records import make_record, submission_record
from ropewalk.jobs.runs.submit.submit import check_inputs, inputs_of


def dry_run_directory(config: JobConfig, record: Mapping[str, Any], root: Path | None = None) -> RunDir:
    """Make the run of a dry run, which has a record but no files."""
    path = (root or runs_root()) / f"{dated_label(config.name or record['job'])}-dry-run"
    return RunDir(path, record={"run": path.name, **record})


class DryRun(NamedTuple):
    """The runs of a submission after all checks, none of which has files, and sentences for the user."""

    backend: Backend
    configs: list[JobConfig]
    runs: list[RunDir]
    notices: list[str]


def dry_run(job: str, configs: Sequence[JobConfig], cluster_name: str, *, waits: bool = False) -> DryRun:
    """Check a submission and make its runs without files. `waits`: it starts after other runs. Raises RopewalkError."""
    backend = load_backend(cluster_name)
    inputs = inputs_of(backend, configs, cluster_name)
    checked, gpus_notice = set_gpus(backend, [inputs.pin(config)[0].resolved() for config in configs], waits=waits)
    check_inputs(backend, checked, inputs.path_here)
    origin = submission_record(())
    runs = [dry_run_directory(config, make_record(job, config, cluster_name, origin), inputs.root) for config in checked]
    notices = [gpus_notice, backend.resources_notice(checked[0].resources)]
    return DryRun(backend, checked, runs, [notice for notice in notices if notice])


def start_of(planned: DryRun) -> str:
    """Return the backend's estimate of the start, as a sentence; empty if it has none."""
    return " ".join(planned.backend.start_estimate(planned.runs[0], planned.configs[0].resources).split())


def render(job: str, configs: Sequence[JobConfig], cluster_name: str, *, waits: bool = False) -> str:
    """Render the script or manifest of a submission, after the same checks, with an estimate of its start.

    For many runs this is the script of their array if the backend has arrays, else that of the first run. `waits`: the
    submission starts after other runs.
    """
    planned = dry_run(job, configs, cluster_name, waits=waits)
    backend, runs = planned.backend, planned.runs
    script = "".join(
        f"# {heading}\n{backend.render(run, run.resources()).rstrip()}\n\n" for run, heading in view_of(runs[0]).render_needed()
    )
    script += f"{backend.render_many(runs, planned.configs[0].resources).rstrip()}\n"
    notices = [*planned.notices, start_of(planned)]
    return script + "".join(f"# {sentence}\n" for sentence in notices if sentence)  # as comments, so that it remains a script

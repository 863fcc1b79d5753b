"""Renders the job script and the scripts of small jobs from a run, its resources and a cluster's profile."""

import math
import shlex
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from string import Template

from ropewalk.cluster.backends.submission import refuse_short_limit, submission_key
from ropewalk.cluster.config import Resources
from ropewalk.cluster.run.directory import RunDir
from ropewalk.slurm.profile import SlurmProfile

HERE = Path(__file__).parent
ARRAY_LIST = "array.txt"  # in the first run's attempt: the ids of all runs of the array, in order
WATCHDOG_PATIENCE_SECONDS = 15  # without a heartbeat of the first node, before the watchdog asks Slurm about it


def render_job(run: RunDir, resources: Resources, profile: SlurmProfile, attempt: int = 1, runs: int = 1) -> str:
    """Render the job script, without paths of the run directory, of a run or of an array of `runs` runs that begins with it."""
    refuse_short_limit(resources)
    array = runs > 1
    where = f",\n# which is listed in array.txt, beside the first run's {attempt:04d}/job.sbatch" if array else ""
    return fill(
        "job.sbatch",
        directives="\n".join(f"#SBATCH {flag}" for flag in job_options(run, resources, profile, attempt, runs)),
        where=where,
        enter=_enter(run, attempt) if array else "",
        setup="\n".join(environment_lines(run, profile)),
        controller=shlex.quote(sys.executable),
        skip_requeue_delay=skip_requeue_delay(profile),
    )


def job_options(run: RunDir, resources: Resources, profile: SlurmProfile, attempt: int, runs: int) -> list[str]:
    """Return all sbatch options of the job, for the script and for the command line.

    They are repeated on the command line because a variable such as SBATCH_PARTITION would override the script's line.
    """
    log = f"{run.id}/attempts/{attempt:04d}/logs/batch.log" if runs > 1 else f"attempts/{attempt:04d}/logs/batch.log"
    options: dict[str, str | int | bool] = {
        "job-name": f"ropewalk-{run.id}",
        "comment": submission_key(run, attempt),
        **requests(resources),
        **profile.options,
        "requeue": True,
        "open-mode": "append",
        "output": "/dev/null" if runs > 1 else log,
    }
    return flags(options)


def requests(resources: Resources) -> dict[str, str | int | bool]:
    """Return a run's resources as sbatch options."""
    options: dict[str, str | int | bool] = {"nodes": str(resources.allocated_nodes).replace("..", "-"), "ntasks-per-node": 1}
    if resources.cpus:
        options["cpus-per-task"] = resources.cpus
    if resources.gpus:
        options["gpus-per-node"] = resources.gpus
    if resources.memory_gib:
        options["mem"] = f"{math.ceil(resources.memory_gib * 1024)}M"
    if resources.time_limit_minutes:
        options["time"] = math.ceil(resources.time_limit_minutes)
    options["signal"] = f"B:USR2@{math.ceil(resources.grace_seconds)}"
    if resources.replaces_nodes:
        options["no-kill"] = True
    return options


def placement(profile: SlurmProfile) -> dict[str, str | int | bool]:
    """Return the options that small jobs of a run share with its main job."""
    return {name: value for name, value in profile.options.items() if name in {"partition", "account", "qos", "reservation"}}


def render_extra_node(run: RunDir, resources: Resources, profile: SlurmProfile, job: str, minutes: int | None) -> str:
    """Render the script of a job that holds an additional node for an elastic run."""
    changes = {"nodes": type(resources.nodes)(least=1, most=1), "spare_nodes": 0, "time_limit_minutes": minutes}
    single_node = resources.model_copy(update=changes)
    options: dict[str, str | int | bool] = {"job-name": extra_node_name(job), "comment": f"{submission_key(run, 0)}:more"}
    options |= {**requests(single_node), **profile.options, "output": "/dev/null", "no-requeue": True}
    return fill("extra_node.sbatch", directives="\n".join(f"#SBATCH {flag}" for flag in flags(options)), job=job)


def skip_requeue_delay(profile: SlurmProfile) -> str:
    """Render the lines that a script runs after its job was requeued: they submit a small job that ends the requeue delay."""
    if not profile.requeue_at_once:
        return ""
    return fill("skip_requeue_delay.sh", options=shlex.join(flags(placement(profile)))).rstrip()


def render_watchdog(skip_delay: str) -> str:
    """Render the script that requeues an elastic job whose first node died; `skip_delay` comes from `skip_requeue_delay`."""
    return fill("watchdog.sh", patience=str(WATCHDOG_PATIENCE_SECONDS), skip_requeue_delay=skip_delay)


def extra_node_name(job: str) -> str:
    """Return the name of the jobs that hold additional nodes for an elastic run's job; they are looked up by it."""
    return f"ropewalk-more-{job}"


def skip_delay_name(job: str) -> str:
    """Return the name of the small job that ends a requeued job's delay."""
    return f"ropewalk-hurry-{job}"


def flags(options: Mapping[str, str | int | bool]) -> list[str]:
    """Format options as command-line arguments: --exclusive, --nodes=2."""
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items() if value is not False]


class _Line(Template):
    """A line of a template: @name@ is replaced by a value, which is not expanded again; any other @ is an error."""

    pattern = r"@(?:(?P<named>[a-z_]+)@|(?P<escaped>(?!))|(?P<braced>(?!))|(?P<invalid>))"  # type: ignore[assignment]  # Template accepts text here


def fill(template: str, **values: str) -> str:
    """Fill in a template's @names@ and drop lines that become empty. Raises KeyError for a name without a value."""
    lines = []
    for line in _template(template):
        filled = _Line(line).substitute(values)
        if filled or not line:
            lines.append(filled.rstrip())
    return "\n".join(lines) + "\n"


@cache
def _template(name: str) -> list[str]:
    return (HERE / name).read_text().splitlines()


def _enter(run: RunDir, attempt: int) -> str:
    list_file = f"{run.id}/attempts/{attempt:04d}/{ARRAY_LIST}"
    return (
        f'cd "$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {shlex.quote(list_file)})" || exit 1\n'
        f"mkdir -p attempts/{attempt:04d}/logs; exec >> attempts/{attempt:04d}/logs/batch.log 2>&1"
    )


def environment_lines(run: RunDir, profile: SlurmProfile) -> list[str]:
    """Return the shell lines that prepare the environment of a run's agents, in the run's directory."""
    return [*profile.setup, *_exports(run, profile)]


def _exports(run: RunDir, profile: SlurmProfile) -> list[str]:
    values = dict(profile.environment)
    if profile.interface:
        values |= {"NCCL_SOCKET_IFNAME": profile.interface, "GLOO_SOCKET_IFNAME": profile.interface}
    # jobs that the run submits itself, such as an array, use the same partition and account
    values |= {f"SBATCH_{name.upper()}": str(value) for name, value in placement(profile).items()}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in values.items()]
    if run.code is not None:
        code = f"../{run.code.relative_to(run.path.parent)}"
        message = shlex.quote(f"{code}: the copy of the code is gone")
        lines.append(f"[ -d {shlex.quote(code)} ] || {{ echo {message} >&2; exit 1; }}")
        if run.code_is_program:
            lines.append(f'export PYTHONPATH="$PWD"/{shlex.quote(code)}"${{PYTHONPATH:+:$PYTHONPATH}}"')
    return [*lines, "export PYTHONUNBUFFERED=1"]

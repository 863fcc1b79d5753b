"""The job script, rendered: pure functions from a run, its resources and a cluster's profile to text."""

import math
import shlex
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from string import Template

from ropewalk.cluster.backends.submission import key_of, refuse_short_limit
from ropewalk.cluster.config import Resources
from ropewalk.cluster.run.directory import RunDir
from ropewalk.slurm.profile import SlurmProfile

HERE = Path(__file__).parent
ARRAY_LIST = "array.txt"  # in the first run's attempt: the runs' names, in order
WATCHDOG_PATIENCE_SECONDS = 15  # without a sign of life of the first node, before Slurm is asked about it


def render_job(run: RunDir, resources: Resources, profile: SlurmProfile, attempt: int = 1, runs: int = 1) -> str:
    """The job script of a run, or of an array of `runs` that begins with it. It names no path of the run itself."""
    refuse_short_limit(resources)
    array = runs > 1
    where = f",\n# which array.txt names, beside the first run's {attempt:04d}/job.sbatch" if array else ""
    return fill(
        "job.sbatch",
        directives="\n".join(f"#SBATCH {flag}" for flag in job_options(run, resources, profile, attempt, runs)),
        where=where,
        enter=_enter(run, attempt) if array else "",
        setup="\n".join([*profile.setup, *_exports(run, profile)]),
        controller=shlex.quote(sys.executable),
        skip_requeue_delay=skip_requeue_delay(profile),
    )


def job_options(run: RunDir, resources: Resources, profile: SlurmProfile, attempt: int, runs: int) -> list[str]:
    """All options of the job, for the script and for sbatch's command line: SBATCH_PARTITION would win over a script's line."""
    log = f"{run.id}/attempts/{attempt:04d}/logs/batch.log" if runs > 1 else f"attempts/{attempt:04d}/logs/batch.log"
    options: dict[str, str | int | bool] = {
        "job-name": f"ropewalk-{run.id}",
        "comment": key_of(run, attempt),
        **requests(resources),
        **profile.options,
        "requeue": True,
        "open-mode": "append",
        "output": "/dev/null" if runs > 1 else log,
    }
    return flags(options)


def requests(resources: Resources) -> dict[str, str | int | bool]:
    """A run's resources as options of sbatch."""
    options: dict[str, str | int | bool] = {"nodes": str(resources.nodes).replace("..", "-"), "ntasks-per-node": 1}
    if resources.cpus:
        options["cpus-per-task"] = resources.cpus
    if resources.gpus:
        options["gpus-per-node"] = resources.gpus
    if resources.memory_gib:
        options["mem"] = f"{math.ceil(resources.memory_gib * 1024)}M"
    if resources.time_limit_minutes:
        options["time"] = math.ceil(resources.time_limit_minutes)
    options["signal"] = f"B:USR2@{math.ceil(resources.grace_seconds)}"
    if resources.nodes.elastic:
        options["no-kill"] = True
    return options


def placement(profile: SlurmProfile) -> dict[str, str | int | bool]:
    """The options that a small job beside the run's own has too."""
    return {name: value for name, value in profile.options.items() if name in {"partition", "account", "qos", "reservation"}}


def render_extra_node(run: RunDir, resources: Resources, profile: SlurmProfile, job: str, minutes: int | None) -> str:
    """The script of a job that holds one more node for an elastic run."""
    one = resources.model_copy(update={"nodes": type(resources.nodes)(least=1, most=1), "time_limit_minutes": minutes})
    options: dict[str, str | int | bool] = {"job-name": extra_node_name(job), "comment": f"{key_of(run, 0)}:more"}
    options |= {**requests(one), **profile.options, "output": "/dev/null", "no-requeue": True}
    return fill("extra_node.sbatch", directives="\n".join(f"#SBATCH {flag}" for flag in flags(options)), job=job)


def skip_requeue_delay(profile: SlurmProfile) -> str:
    """Lines of a script, for when its job is requeued: they submit a small job that ends the two minutes' wait."""
    if not profile.requeue_at_once:
        return ""
    return fill("skip_requeue_delay.sh", options=shlex.join(flags(placement(profile)))).rstrip()


def render_watchdog(skip_delay: str) -> str:
    """The script that requeues an elastic job whose first node died; `skip_delay` are the lines of `skip_requeue_delay`."""
    return fill("watchdog.sh", patience=str(WATCHDOG_PATIENCE_SECONDS), skip_requeue_delay=skip_delay)


def extra_node_name(job: str) -> str:
    """The name of the jobs that hold extra nodes for an elastic run's job, by which they are found again."""
    return f"ropewalk-more-{job}"


def skip_delay_name(job: str) -> str:
    """The name of the small job that ends the wait of a requeued job."""
    return f"ropewalk-hurry-{job}"


def flags(options: Mapping[str, str | int | bool]) -> list[str]:
    """Options as words: --exclusive, --nodes=2."""
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items() if value is not False]


class _Line(Template):
    """A line of a template: @name@ stands for a value, in which nothing is looked for; any other @ is an error."""

    pattern = r"@(?:(?P<named>[a-z_]+)@|(?P<escaped>(?!))|(?P<braced>(?!))|(?P<invalid>))"  # type: ignore[assignment]  # a class's pattern is text


def fill(template: str, **values: str) -> str:
    """A template beside this module with its @names@ replaced; lines that become empty vanish. Raises KeyError for a name
    that has no value.
    """
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


def _exports(run: RunDir, profile: SlurmProfile) -> list[str]:
    values = dict(profile.environment)
    if profile.interface:
        values |= {"NCCL_SOCKET_IFNAME": profile.interface, "GLOO_SOCKET_IFNAME": profile.interface}
    # what a job of this run submits itself, such as an array, goes where the run goes
    values |= {f"SBATCH_{name.upper()}": str(value) for name, value in placement(profile).items()}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in values.items()]
    if run.code is not None:
        code = f"../{run.code.relative_to(run.path.parent)}"
        said = shlex.quote(f"{code}: the copy of the code is gone")
        lines.append(f"[ -d {shlex.quote(code)} ] || {{ echo {said} >&2; exit 1; }}")
        if run.code_is_program:
            lines.append(f'export PYTHONPATH="$PWD"/{shlex.quote(code)}"${{PYTHONPATH:+:$PYTHONPATH}}"')
    return [*lines, "export PYTHONUNBUFFERED=1"]

"""`ropewalk run JOB --help`: every key of a job by section, with type, default and description."""

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from ropewalk.cluster.config import JobConfig
from ropewalk.jobs.cli.job_keys import Key, keys_of
from ropewalk.jobs.registry import JOBS, config_of, find_job

WIDEST = 120  # columns; longer lines are hard to read
TOP = ""  # the section of top-level keys


def print_job_help(command: str, job: str) -> None:
    """Print a job's usage and its keys. Raises ConfigError for an unknown job."""
    spec = find_job(job)
    out = _console()
    out.print(f"ropewalk {command} {spec.name} [-c FILE.yaml] [key=value ...] [--on CLUSTER]\n")
    out.print(f"{spec.summary} Keys are set in FILE.yaml, or as key=value.")
    out.print(_page(config_of(spec)))


def print_jobs() -> None:
    """Print one line per job."""
    rows = _grid(max(map(len, JOBS)))
    for spec in JOBS.values():
        rows.add_row(Text(spec.name, style="bold"), spec.summary)
    _console().print(
        Group(Text("Jobs", style="bold underline"), rows, Text("\n`ropewalk run JOB --help` lists the keys of a job."))
    )


def _page(kind: type[JobConfig]) -> Group:
    keys = keys_of(kind)
    width = max(len(key.name) for key in keys)
    sections = list(dict.fromkeys(key.section for key in keys))
    sections.sort(key=lambda name: name != TOP)  # stable: the other sections keep their order
    lines: list[Text | Table] = []
    for section in sections:
        rows = _grid(width)
        for key in keys:
            if key.section == section:
                rows.add_row(Text(key.name, style="bold"), Text.assemble(f"{key.meaning} ", (_facts(kind, key), "dim")))
        lines += [Text(), _heading(kind, section), rows]
    return Group(*lines)


def _facts(kind: type[JobConfig], key: Key) -> str:
    """Return `(float, default 0.1)`, or when the key is required if it has no default."""
    if key.default is not None:
        return f"({key.type}, {key.default if key.default == 'unset' else f'default {key.default}'})"
    optional = key.section and not kind.model_fields[key.section].is_required()
    return f"({key.type}, required with {key.section})" if optional else f"({key.type}, required)"


def _heading(kind: type[JobConfig], section: str) -> Text:
    if section == TOP:
        return Text("Top-level keys", style="bold underline")
    info = kind.model_fields[section]
    more = ", required" if info.is_required() else ", unset by default" if info.default is None else ""
    return Text.assemble((section, "bold underline"), f": {info.description or ''}{more}")


def _grid(width: int) -> Table:
    rows = Table.grid(padding=(0, 2))
    rows.add_column(no_wrap=True, min_width=width + 2)
    rows.add_column(overflow="fold")
    return rows


def _console() -> Console:
    console = Console(highlight=False, markup=False, emoji=False)
    return console if console.width <= WIDEST else Console(highlight=False, markup=False, emoji=False, width=WIDEST)

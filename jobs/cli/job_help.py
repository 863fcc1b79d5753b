"""Help of jobs and keys: `ropewalk run JOB --help [--all]` and `ropewalk help KEY`."""

from collections.abc import Iterable

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from ropewalk.cluster.config import JobConfig
from ropewalk.cluster.config_reader import similar_keys
from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.cli.job_keys import Key, all_keys, keys_of, usual_keys
from ropewalk.jobs.registry import JOBS, config_of, find_job

WIDEST = 120  # columns; longer lines are hard to read
TOP = ""  # the section of top-level keys


def print_job_help(command: str, job: str, every_key: bool) -> None:
    """Print a job's usage and its usual keys, or all of them. Raises ConfigError for an unknown job."""
    spec = find_job(job)
    kind = config_of(spec)
    usual = [] if every_key else usual_keys(kind)
    out = _console()
    out.print(f"ropewalk {command} {job} [-c FILE.yaml] [key=value ...] [--on CLUSTER]\n")
    out.print(f"{spec.summary} Keys are set in FILE.yaml, or as key=value.")
    out.print(_usual_page(usual) if usual else _page(kind))
    if usual:
        more = f"ropewalk {command} {job} --help --all"
        out.print(f"\n{len(keys_of(kind))} keys in all: `{more}`. `ropewalk help KEY` explains a key.")


def print_jobs() -> None:
    """Print one line per job."""
    rows = _grid(max(map(len, JOBS)))
    for spec in JOBS.values():
        rows.add_row(Text(spec.name, style="bold"), spec.summary)
    _console().print(
        Group(Text("Jobs", style="bold underline"), rows, Text("\n`ropewalk run JOB --help` lists the keys of a job."))
    )


def print_key_help(name: str, jobs: Iterable[str], commands: Iterable[str] = ()) -> None:
    """Print the keys of these jobs with this name and below it, or else those whose dotted name ends with it.

    Raises ConfigError if there is none.
    """
    jobs = list(jobs)
    parts: list[Text | Table] = []
    for key, its_jobs in find_keys(name, jobs, commands):
        if not parts or str(parts[-2]) != key.name:
            parts += [Text(key.name, style="bold"), Table.grid()]
        rows = parts[-1]
        assert isinstance(rows, Table)
        where = "" if len(jobs) == 1 else f" {'every job' if len(its_jobs) == len(jobs) else ', '.join(its_jobs)}"
        rows.add_row("  ", Text.assemble(f"{key.meaning} ", (key.facts, "dim"), (where, "italic")))
    _console().print(Group(*parts))


def find_keys(name: str, jobs: Iterable[str], commands: Iterable[str] = ()) -> list[tuple[Key, list[str]]]:
    """Return the keys that `help NAME` explains, each variant with its jobs, ordered by name. Raises ConfigError."""
    by_job = {job: list(all_keys(config_of(find_job(job)))) for job in jobs}
    matching: dict[str, dict[tuple[str, str], tuple[Key, list[str]]]] = {}  # by name, then by meaning and facts
    exact = any(key.name == name for keys in by_job.values() for key in keys)
    for job, keys in by_job.items():
        for key in keys:
            if f"{key.name}.".startswith(f"{name}.") or (not exact and key.name.endswith(f".{name}")):
                matching.setdefault(key.name, {}).setdefault((key.meaning, key.facts), (key, []))[1].append(job)
    if not matching:
        near = similar_keys(name, [*(key.name for keys in by_job.values() for key in keys), *JOBS, *commands])
        remedy = f"did you mean {' or '.join(map(repr, near))}?" if near else "`ropewalk run JOB --help --all` lists a job's keys"
        raise ConfigError(f"no key, command or job is called {name!r}; {remedy}")
    return [variant for variants in matching.values() for variant in variants.values()]


def has_key(name: str) -> bool:
    """Return True if a job has a key with this very name."""
    return any(key.name == name for spec in JOBS.values() for key in all_keys(config_of(spec)))


def _usual_page(keys: list[Key]) -> Group:
    rows = _grid(max(len(key.name) for key in keys))
    for key in keys:
        _add(rows, key)
    return Group(Text(), Text("Usual keys", style="bold underline"), rows)


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
                _add(rows, key)
        lines += [Text(), _heading(kind, section), rows]
    return Group(*lines)


def _add(rows: Table, key: Key) -> None:
    rows.add_row(Text(key.name, style="bold"), Text.assemble(f"{key.meaning} ", (key.facts, "dim")))


def _heading(kind: type[JobConfig], section: str) -> Text:
    if section == TOP:
        return Text("Top-level keys", style="bold underline")
    info = kind.model_fields[section]
    meaning = info.description or ""
    if info.is_required():
        meaning += ", required"
    elif info.default is None and "unset: " not in meaning:
        meaning += ", unset by default"
    return Text.assemble((section, "bold underline"), f": {meaning}")


def _grid(width: int) -> Table:
    rows = Table.grid(padding=(0, 2))
    rows.add_column(no_wrap=True, min_width=width + 2)
    rows.add_column(overflow="fold")
    return rows


def _console() -> Console:
    console = Console(highlight=False, markup=False, emoji=False)
    return console if console.width <= WIDEST else Console(highlight=False, markup=False, emoji=False, width=WIDEST)

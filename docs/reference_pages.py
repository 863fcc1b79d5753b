"""Pages of the reference that are generated from the code: keys, commands, files of a run, metrics, events, exit codes."""

import json
from collections.abc import Iterator
from pathlib import Path

import typer
import typer.main
from pydantic import TypeAdapter
from typer.core import TyperGroup

from ropewalk.cluster.errors import EXIT_CODES
from ropewalk.cluster.run.names import ATTEMPT_FILES, RUN_FILES
from ropewalk.jobs.cli.answers.base import Failure
from ropewalk.jobs.cli.answers.schema import ANSWERS, LINES
from ropewalk.jobs.cli.job_keys import Key, keys_of
from ropewalk.jobs.cli.main import app
from ropewalk.jobs.registry import JOBS, config_of
from ropewalk.jobs.results.metric_names import METRICS
from ropewalk.jobs.runs.show.events import EVENTS
from ropewalk.k8s.profile import K8sProfile
from ropewalk.slurm.profile import SlurmProfile
from tests.jobs.training.loop.zoo import ZOO


def write_pages(folder: Path) -> None:
    """Write one page per job, a page of all commands, and the tables that `run-directory.md` includes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, spec in JOBS.items():
        lines = [f"# {name}", "", spec.summary, "", *_table(keys_of(config_of(spec)))]
        (folder / f"job-{name}.md").write_text("\n".join(lines) + "\n")
    for backend, profile in (("slurm", SlurmProfile), ("k8s", K8sProfile)):
        lines = [f"# Profiles of `{backend}`", *_table(keys_of(profile))]
        (folder / f"profile-{backend}.md").write_text("\n".join(lines) + "\n")
    tables = {
        "run-files": (("file", "content"), [(f"`{name}`", content) for name, content in RUN_FILES.items()]),
        "attempt-files": (("file", "content"), [(f"`{name}`", content) for name, content in ATTEMPT_FILES.items()]),
        "job-files": (
            ("job", "file", "content"),
            [(job, f"`{name}`", content) for job, spec in JOBS.items() for name, content in spec.files.items()],
        ),
        "metrics": (("metric", "unit", "meaning", "job"), [(f"`{name}`", *metric) for name, metric in METRICS.items()]),
        "events": (
            ("event", "line in `show` and `why`"),
            [(f"`{name}`", f"`{line}`" if line else "") for name, line in sorted(EVENTS.items())],
        ),
        "exit-codes": (
            ("code", "of a command", "of a rank or a program of yours"),
            [(str(code), *meanings) for code, meanings in sorted(EXIT_CODES.items())],
        ),
    }
    (folder / "json-schemas.txt").write_text("\n".join(_schemas()) + "\n")
    (folder / "models.txt").write_text(", ".join(f"`{kind}`" for kind in ZOO) + "\n")
    for name, (heads, rows) in tables.items():
        (folder / f"{name}.txt").write_text("\n".join(_rows(heads, rows)) + "\n")
    command = typer.main.get_command(app)
    assert isinstance(command, TyperGroup)
    (folder / "commands.md").write_text("\n".join(["# Commands", "", *_commands(command, "ropewalk")]) + "\n")


def _schemas() -> Iterator[str]:
    """Yield the schema of what each command prints with `--json`, and of a failure once."""
    failure = TypeAdapter(Failure).json_schema()
    for name, answer in {**ANSWERS, "a command that fails": Failure}.items():
        schema = failure if answer is Failure else TypeAdapter(answer).json_schema()
        lines = ", any number of lines" if name in LINES else ""
        yield from (f"### {name}{lines}", "", "```json", json.dumps(schema, indent=1), "```", "")


def _rows(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    for row in (heads, ("---",) * len(heads)):
        yield f"| {' | '.join(row)} |"
    for row in rows:
        yield f"| {' | '.join(map(_cell, row))} |"


def _table(keys: list[Key]) -> Iterator[str]:
    for section in sorted({key.section: None for key in keys}, key=bool):  # top-level keys first, sections in their order
        yield from ("", f"## {section or 'Top-level keys'}", "", "| key | type | default | meaning |", "|---|---|---|---|")
        for key in keys:
            if key.section == section:
                default = "required" if key.default is None else f"`{_cell(key.default)}`"
                yield f"| `{key.name}` | {_cell(key.type)} | {default} | {_cell(key.meaning)} |"


def _commands(group: TyperGroup, prefix: str) -> Iterator[str]:
    for name, command in sorted(group.commands.items()):
        if command.hidden:
            continue
        if isinstance(command, TyperGroup):
            yield from _commands(command, f"{prefix} {name}")
            continue
        context = typer.Context(command, info_name=f"{prefix} {name}")
        yield from (f"## {prefix} {name}", "", "```text", command.get_usage(context).removeprefix("Usage: "), "```", "")
        yield from ((command.help or "").replace("\b\n", ""), "")
        options = [record for item in command.params if (record := item.get_help_record(context)) is not None]
        if options:
            yield from (
                "| option | meaning |",
                "|---|---|",
                *(f"| `{name.partition(' <')[0]}` | {_cell(text)} |" for name, text in options),
                "",
            )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")

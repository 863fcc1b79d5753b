"""Pages of the reference that are generated from the code: the keys of every job, and every command."""

from collections.abc import Iterator
from pathlib import Path

import typer
import typer.main
from typer.core import TyperGroup

from ropewalk.jobs.cli.job_keys import Key, keys_of
from ropewalk.jobs.cli.main import app
from ropewalk.jobs.registry import JOBS, config_of


def write_pages(folder: Path) -> None:
    """Write one page per job, and a page of all commands."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, spec in JOBS.items():
        lines = [f"# {name}", "", spec.summary, "", *_table(keys_of(config_of(spec)))]
        (folder / f"job-{name}.md").write_text("\n".join(lines) + "\n")
    command = typer.main.get_command(app)
    assert isinstance(command, TyperGroup)
    (folder / "commands.md").write_text("\n".join(["# Commands", "", *_commands(command, "ropewalk")]) + "\n")


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

"""The commands that free disk space: `rm`, `gc`."""

from typing import Annotated

import typer

from ropewalk.jobs.cli import complete
from ropewalk.jobs.cli.complete import AsJson
from ropewalk.jobs.cli.json_output import print_json
from ropewalk.jobs.cli.known_runs import print_elsewhere


def rm(
    run_refs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="runs: ids, unique prefixes of ids, or directories", autocompletion=complete.runs),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only print what would be deleted")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete runs that have ended, unless the registry or another run needs them."""
    from ropewalk.jobs.runs.space.remove import remove_runs

    removed = remove_runs(run_refs, dry_run=dry_run)
    if as_json:
        print_json([item._asdict() for item in removed])
    else:
        for item in removed:
            print(item)


def gc(
    yes: Annotated[bool, typer.Option("--yes", help="delete; without it nothing is deleted")] = False,
    versions: Annotated[
        int, typer.Option("--versions", min=1, metavar="N", help="newest versions of each registered model to keep")
    ] = 5,
    as_json: AsJson = False,
) -> None:
    """List files that no run needs, and with --yes delete them.

    Copies of code, prepared data, fetched models and data, work folders of data sets that ended unfinished, rests of removed
    runs, what killed runs have left in this machine's memory, and exports of old registered versions without an alias. Copies of
    code and data younger than a day are kept.
    """
    from ropewalk.cluster.run.disk import disk_bytes
    from ropewalk.cluster.text import format_bytes
    from ropewalk.jobs.models.registry.remove import prune, unneeded
    from ropewalk.jobs.runs.models.model_versions import registered_models
    from ropewalk.jobs.runs.show.status import roots
    from ropewalk.jobs.runs.show.tables import console, table
    from ropewalk.jobs.runs.space.garbage import Garbage, delete_garbage, find_garbage, find_memory_garbage

    garbage = [item for root in roots() if root.is_dir() for item in find_garbage(root)]
    garbage += find_memory_garbage()
    models = registered_models()
    old = [version for model in models for version in unneeded(model, versions)]
    for version in old:
        reason = f"{version.id}: not among the newest {versions}, and no alias or run needs it"
        if version.run is None:
            garbage.append(Garbage("version", version.directory, 0, f"{reason}; the directory stays"))
        else:
            garbage.append(Garbage("version", version.directory, disk_bytes(version.directory), reason))
    if yes:
        for item in garbage:
            if item.kind != "version":
                delete_garbage(item)
        for model in models:
            prune(model, versions)
    total = sum(item.bytes for item in garbage)
    if as_json:
        print_json({"deleted": yes, "bytes": total, "items": [item.plain() for item in garbage]})
        return
    if not garbage:
        print("nothing to delete")
        print_elsewhere("gc")
        return
    rows = table("KIND", ">SIZE", "PATH", "REASON")
    for item in garbage:
        rows.add_row(item.kind, format_bytes(item.bytes), str(item.path), item.reason)
    console().print(rows)
    print(f"deleted {format_bytes(total)}" if yes else f"{format_bytes(total)} can be deleted: `ropewalk gc --yes`")

"""The commands of the model registry: `models`, `promote`, `rollback`, `approve`."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ropewalk.jobs.cli import complete
from ropewalk.jobs.cli.complete import AsJson, RunRef
from ropewalk.jobs.cli.json_output import print_json
from ropewalk.jobs.cli.known_runs import print_elsewhere

if TYPE_CHECKING:
    from ropewalk.jobs.runs.models.model_versions import Move, RegisteredModel

ModelRef = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="a run (its newest checkpoint), RUN@STEP, a Hugging Face directory, or a version or alias: NAME@3, candidate",
        autocompletion=complete.models,
    ),
]


def models(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="show only this model, with its history", autocompletion=complete.names)
    ] = None,
    remove: Annotated[
        str | None,
        typer.Option(
            "--remove",
            metavar="NAME@N",
            help="remove a version: delete its export and unpin its checkpoint; its record stays",
            autocompletion=complete.models,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List registered models: versions, aliases, gates, and who promoted them; or remove a version."""
    from ropewalk.cluster.errors import ConfigError
    from ropewalk.jobs.runs.models.model_versions import registered_models
    from ropewalk.jobs.runs.show.tables import console

    if remove is not None:
        return _remove(remove, as_json=as_json)
    registered = registered_models()
    matching = [model for model in registered if name in (None, model.name)]
    if name is not None and not matching:
        names = ", ".join(model.name for model in registered) or "none yet"
        raise ConfigError(f"no model {name!r} in the registry; models: {names}")
    if as_json:
        print_json([_plain(model) for model in matching])
    elif not matching:
        print("the registry is empty; `ropewalk promote RUN --to candidate` registers a model")
        print_elsewhere("models")
    else:
        for model in matching:
            console().print(_versions_table(model))
            if name is not None and any(model.history(alias) for alias in model.alias_names()):
                console().print(_history_table(model))


def _remove(ref: str, *, as_json: bool) -> None:
    from ropewalk.jobs.models.registry.remove import remove

    version = remove(ref)
    if as_json:
        print_json(version.plain())
    elif version.path is not None:
        print(f"{version.id} is removed from the registry; {version.path} is not deleted")
    else:
        print(f"{version.id} is removed: its export is deleted, and {version.ref} is no longer protected from deletion")


def promote(
    model: ModelRef,
    to: Annotated[str, typer.Option("--to", metavar="ALIAS", help="candidate, production, or another alias")],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="name of the registered model; unset: the only one")
    ] = None,
    force: Annotated[str | None, typer.Option("--force", metavar="WHY", help="promote without a passed gate; record WHY")] = None,
    as_json: AsJson = False,
) -> None:
    """Point an alias to a model; production requires that its gates have passed."""
    from ropewalk.jobs.models.registry.directory import model_directory
    from ropewalk.jobs.models.registry.promote import gates_of_version, register_judged
    from ropewalk.jobs.models.registry.promote import promote as move_alias
    from ropewalk.jobs.runs.show.tables import console

    version = register_judged(model, to, name, force=force)
    gates_of_version(version, to, force)  # before the export, which is slow
    with console(stderr=True).status(f"exporting {version.id} ..."):  # so that serving it or rolling back to it is immediate
        directory = model_directory(version)
    move = move_alias(version.id, to, root=version.root, force=force)
    if as_json:
        print_json({**move.plain(), "ref": version.ref, "directory": str(directory)})
    else:
        print(_move_line(move))


def rollback(
    alias: Annotated[
        str, typer.Argument(metavar="[ALIAS]", help="an alias, or NAME@ALIAS; unset: production", autocompletion=complete.aliases)
    ] = "production",
    why: Annotated[str | None, typer.Option("--why", metavar="WHY", help="reason to record")] = None,
    as_json: AsJson = False,
) -> None:
    """Point an alias to its previous version; a candidate is withdrawn."""
    from ropewalk.jobs.models.registry.promote import rollback as move_back

    name, _, alias_name = alias.rpartition("@")
    move = move_back(alias_name, model=name or None, reason=why)
    if as_json:
        print_json(move.plain())
    else:
        print(_move_line(move))


def approve(
    run_ref: RunRef,
    no: Annotated[str | None, typer.Option("--no", metavar="WHY", help="refuse the candidate; record WHY")] = None,
    as_json: AsJson = False,
) -> None:
    """Approve or refuse the candidate of a refresh run that waits for a person's decision."""
    from ropewalk.cluster.errors import ConfigError
    from ropewalk.jobs.models.registry.register import who
    from ropewalk.jobs.runs.show.status import find_run
    from ropewalk.jobs.runs.show.view import view_of

    run = find_run(run_ref)
    rounds = view_of(run).plain().get("rounds") if run.record.get("job") == "refresh" else None
    waiting = [
        entry for entry in rounds or () if "approval_requested" in entry and "approval" not in entry and "outcome" not in entry
    ]
    if not waiting:
        raise ConfigError(f"{run.id} does not wait for an approval; see `ropewalk show {run.id}`")
    number, candidate = waiting[-1]["round"], waiting[-1]["candidate"]
    run.requests.put("approved", {"round": number, "yes": no is None, "by": who(), "why": no})
    if as_json:
        print_json({"run": run.id, "round": number, "candidate": candidate, "approved": no is None})
        return
    print(f"round {number} of {run.id}: {candidate} {'gets traffic' if no is None else 'is refused'}")


def _move_line(move: "Move") -> str:
    grounds = ", ".join(f"{gate['run']} passed" for gate in move.gates if gate["passed"]) or "no gate"
    if move.forced is not None:
        grounds = f"forced: {move.forced}"
    if move.kind != "promote":
        grounds = move.reason or move.kind
    return f"{move.model}@{move.alias} -> {move.version_id or 'nothing'} ({grounds})"


def _plain(model: "RegisteredModel") -> dict[str, Any]:
    from ropewalk.jobs.models.registry.deployments import rollouts

    aliases = {alias: version.id for alias, version in model.aliases().items()}
    history = [{"alias": alias, **move.plain()} for alias in model.alias_names() for move in model.history(alias)]
    return {
        "model": model.name,
        "root": str(model.root),
        "aliases": aliases,
        "versions": [version.plain() for version in model.versions()],
        "history": sorted(history, key=lambda move: move["time"]),
        "rollouts": [entry.model_dump() for entry in rollouts(model.root, model.name)],
    }


def _versions_table(model: "RegisteredModel") -> Any:
    from ropewalk.jobs.models.registry.deployments import rollouts
    from ropewalk.jobs.runs.show.tables import duration, table

    versions = table("VERSION", "ALIASES", "MODEL", "GATES", "SERVED", "BY", ">AGE", title=model.name)
    aliases = model.aliases()
    moves = [move for alias in model.alias_names() for move in model.history(alias)]
    deployments = rollouts(model.root, model.name)
    served = {entry.version: ": ".join(filter(None, (entry.state, entry.cause))) for entry in deployments}
    for version in model.versions():
        own_aliases = [alias for alias, target in aliases.items() if target.number == version.number]
        promotion = next((move for move in reversed(moves) if move.version == version.number and move.kind == "promote"), None)
        versions.add_row(
            version.id,
            " ".join(own_aliases),
            version.ref,
            _evidence(promotion),
            "removed" if version.removed is not None else served.get(version.number, ""),
            version.by,
            duration(time.time() - version.created),
        )
    return versions


def _evidence(move: "Move | None") -> str:
    if move is None:
        return ""
    gates = [f"{gate['job']} {'passed' if gate['passed'] else 'refused'}" for gate in move.gates]
    return ", ".join(gates + ([f"forced: {move.forced}"] if move.forced else [])) or "none"


def _history_table(model: "RegisteredModel") -> Any:
    from ropewalk.jobs.runs.show.tables import duration, table

    rows = table(">AGO", "ALIAS", "MOVE", "VERSION", "BY", "GROUNDS", title="history")
    moves = sorted((move for alias in model.alias_names() for move in model.history(alias)), key=lambda move: move.time)
    for move in moves:
        grounds = _evidence(move) if move.kind == "promote" else ""
        reasons = " · ".join(text for text in (grounds, move.reason) if text)
        rows.add_row(duration(time.time() - move.time), move.alias, move.kind, move.version_id or "none", move.by, reasons)
    return rows

"""Commands about models of the registry: models, promote, rollback, approve."""

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ropewalk.jobs.cli import complete
from ropewalk.jobs.cli.arguments import AsJson, RunRef

if TYPE_CHECKING:
    from ropewalk.jobs.runs.models.model_versions import Move, RegisteredModel

ModelWords = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="a run (its newest checkpoint), RUN@STEP, a Hugging Face directory, or a version or alias: NAME@3, candidate",
        autocompletion=complete.models,
    ),
]


def models(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="only this model, with its history", autocompletion=complete.names)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the models of the registry: versions, aliases, gates, who promoted what."""
    from ropewalk.cluster.errors import ConfigError
    from ropewalk.jobs.runs.models.model_versions import registered_models
    from ropewalk.jobs.runs.show.tables import console

    every = registered_models()
    found = [model for model in every if name in (None, model.name)]
    if name is not None and not found:
        known = ", ".join(model.name for model in every) or "none yet"
        raise ConfigError(f"no model {name!r} in the registry; models: {known}")
    if as_json:
        print(json.dumps([_plain(model) for model in found], default=str))
    elif not found:
        print("the registry has no model yet; `ropewalk promote RUN --to candidate` registers one")
    else:
        for model in found:
            console().print(_versions_table(model))
            if name is not None:
                console().print(_history_table(model))


def promote(
    model: ModelWords,
    to: Annotated[str, typer.Option("--to", metavar="ALIAS", help="candidate, production, or another alias")],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="the registry's name of the model; unset: its only one")
    ] = None,
    force: Annotated[
        str | None, typer.Option("--force", metavar="WHY", help="promote without a passed gate; WHY is recorded")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make an alias point to a model; to production only if its gates have passed."""
    from ropewalk.jobs.models.registry.directory import model_directory
    from ropewalk.jobs.models.registry.promote import gates_of_version
    from ropewalk.jobs.models.registry.promote import promote as move_alias
    from ropewalk.jobs.models.registry.register import register

    version = register(model, name)
    gates_of_version(version, to, force)  # before the export, which takes a while
    directory = model_directory(version)  # so that whoever serves it, or goes back to it, need not wait
    move = move_alias(version.id, to, root=version.root, force=force)
    if as_json:
        print(json.dumps({**move.plain(), "alias": move.alias, "ref": version.ref, "directory": str(directory)}, default=str))
    else:
        print(_told(move))


def rollback(
    alias: Annotated[
        str, typer.Argument(metavar="[ALIAS]", help="an alias, or NAME@ALIAS; unset: production", autocompletion=complete.aliases)
    ] = "production",
    why: Annotated[str | None, typer.Option("--why", metavar="WHY", help="a reason to record")] = None,
    as_json: AsJson = False,
) -> None:
    """Make an alias point to what it pointed to before; a candidate is withdrawn."""
    from ropewalk.jobs.models.registry.promote import rollback as move_back

    name, _, word = alias.rpartition("@")
    move = move_back(word, model=name or None, reason=why)
    if as_json:
        print(json.dumps(move.plain(), default=str))
    else:
        print(_told(move))


def approve(
    run_ref: RunRef,
    no: Annotated[str | None, typer.Option("--no", metavar="WHY", help="refuse the candidate; WHY is recorded")] = None,
) -> None:
    """Let the candidate of a refresh that waits for a person have traffic, or refuse it."""
    from ropewalk.cluster.errors import ConfigError
    from ropewalk.jobs.models.registry.register import who
    from ropewalk.jobs.runs.show.status import find_run
    from ropewalk.jobs.runs.show.view import view_of

    run = find_run(run_ref)
    rounds = view_of(run).plain().get("rounds") if run.record.get("job") == "refresh" else None
    waiting = [one for one in rounds or () if "approval_requested" in one and "approval" not in one and "outcome" not in one]
    if not waiting:
        raise ConfigError(f"{run.id} does not wait for an approval; `ropewalk show {run.id}` says where it stands")
    number, candidate = waiting[-1]["round"], waiting[-1]["candidate"]
    run.requests.put("approved", {"round": number, "yes": no is None, "by": who(), "why": no})
    print(f"round {number} of {run.id}: {candidate} {'gets traffic' if no is None else 'is refused'}")


def _told(move: "Move") -> str:
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
        "rollouts": rollouts(model.root, model.name),
    }


def _versions_table(model: "RegisteredModel") -> Any:
    from ropewalk.jobs.models.registry.deployments import rollouts
    from ropewalk.jobs.runs.show.tables import duration, table

    made = table("VERSION", "ALIASES", "MODEL", "GATES", "SERVED", "BY", ">AGE", title=model.name)
    aliases = model.aliases()
    moves = [move for alias in model.alias_names() for move in model.history(alias)]
    told = rollouts(model.root, model.name)
    served = {one["version"]: ": ".join(filter(None, (one["state"], one["cause"]))) for one in told}
    for version in model.versions():
        mine = [alias for alias, pointed in aliases.items() if pointed.number == version.number]
        evidence = next((move for move in reversed(moves) if move.version == version.number and move.kind == "promote"), None)
        made.add_row(
            version.id,
            " ".join(mine),
            version.ref,
            _evidence(evidence),
            served.get(version.number, ""),
            version.by,
            duration(time.time() - version.created),
        )
    return made


def _evidence(move: "Move | None") -> str:
    if move is None:
        return ""
    told = [f"{gate['job']} {'passed' if gate['passed'] else 'refused'}" for gate in move.gates]
    return ", ".join(told + ([f"forced: {move.forced}"] if move.forced else [])) or "none"


def _history_table(model: "RegisteredModel") -> Any:
    from ropewalk.jobs.runs.show.tables import duration, table

    made = table(">AGO", "ALIAS", "MOVE", "VERSION", "BY", "GROUNDS", title="history")
    moves = sorted((move for alias in model.alias_names() for move in model.history(alias)), key=lambda move: move.time)
    for move in moves:
        grounds = _evidence(move) if move.kind == "promote" else ""
        words = " · ".join(word for word in (grounds, move.reason) if word)
        made.add_row(duration(time.time() - move.time), move.alias, move.kind, move.version_id or "none", move.by, words)
    return made

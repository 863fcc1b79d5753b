"""Promote and roll back aliases by their gates: each move is a numbered file with user, time and reason."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import ConfigError, DamagedFileError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import make_private
from ropewalk.cluster.run.numbered import Entries, append_numbered
from ropewalk.jobs.models.registry.register import register, who
from ropewalk.jobs.models.registry.weights import check_weights, require_present
from ropewalk.jobs.runs.models.gates import GateResult, check_passed, newest_gates, require_passed
from ropewalk.jobs.runs.models.model_versions import (
    ALIASES,
    CANDIDATE,
    NAME,
    PRODUCTION,
    Move,
    RegisteredModel,
    Version,
    registered_models,
)


def promote(
    ref: str,
    alias: str = PRODUCTION,
    *,
    name: str | None = None,
    root: Path | None = None,
    force: str | None = None,
    key: str | None = None,
    expected: Callable[[int | None], bool] = lambda current: True,
    by: str | None = None,
    reason: str | None = None,
) -> Move:
    """Point an alias to the model of `ref`, which is registered first if needed; return the move.

    `production` requires a passed gate, other aliases no failed one, unless `force` gives a reason. A move with the same `key` is
    made once. `expected` is called with the version number that the alias points to, and returns True if it may be moved.
    The weights must be those that were registered.
    Raises ConfigError, CheckpointError.
    """
    if not NAME.fullmatch(alias) or alias.isdigit():
        raise ConfigError(f"the alias {alias!r} must consist of letters, digits, '.', '-' and '_', and must not be a number")
    if force is not None and not force.strip():
        raise ConfigError("--force: give a reason; it is recorded with the promotion")
    version = register_judged(ref, alias, name, root, force=force, by=by)
    model = RegisteredModel(version.root, version.model)
    check_weights(version)
    gates = gates_of_version(version, alias, force)
    entry = {
        **{"version": version.number, "kind": "promote", "by": by or who(), "time": time.time()},
        **{"gates": [judged.plain() for judged in gates], "forced": force, "key": key, "reason": reason},
    }

    def decide(entries: Entries) -> Mapping[str, Any] | None:
        moves = model.moves(alias, entries)
        current = moves[-1].version if moves else None
        if _done(moves, key) or (key is None and current == version.number):
            return None
        if not expected(current):
            now = f"{version.model}@{current}" if current is not None else "nothing"
            raise ConfigError(f"{version.model}@{alias} now points to {now}: it was moved by someone else; check again")
        require_present(model.version(version.number))
        return entry

    move = _move(model, alias, decide, key)
    if alias == PRODUCTION:
        withdraw(version.model, version.root, "it became production", only=version.number, by=by)
    return move


def register_judged(
    ref: str, alias: str, name: str | None = None, root: Path | None = None, *, force: str | None = None, by: str | None = None
) -> Version:
    """Return the version of a reference as `register` does; register nothing if gates forbid the alias. Raises ConfigError."""

    def check(location: RunDir | Path, step: int | None, weights: str, root: Path) -> None:
        _gates(location, step, weights, root, alias=alias, force=force, name=ref)

    return register(ref, name, root, by=by, check=check)


def gates_of_version(version: Version, alias: str, force: str | None) -> list[GateResult]:
    """Return the gates that judged a version. Raises ConfigError if they forbid the alias, unless forced."""
    location = RunDir(version.root / version.run) if version.run else version.directory
    return _gates(location, version.step, version.weights, version.root, alias=alias, force=force, name=version.id)


def _gates(
    location: RunDir | Path, step: int | None, weights: str, root: Path, *, alias: str, force: str | None, name: str
) -> list[GateResult]:
    if force is not None:
        return newest_gates(weights, root)
    if alias == PRODUCTION:
        try:
            return require_passed(location, step, weights, root)
        except ConfigError as error:
            raise ConfigError(f"{error}. --force WHY promotes it anyway and is recorded") from None
    judged = newest_gates(weights, root)
    check_passed(judged, name, "it")
    return judged


def rollback(
    alias: str = PRODUCTION, *, model: str | None = None, root: Path | None = None, checked: bool = False, **more: Any
) -> Move:
    """Point an alias to its version before the last promotion; `more` are `by`, `reason`, `key`, `only`.

    The weights of that version must be those that were registered, unless the caller has `checked` them. With `only` (a version
    number) nothing is done unless the alias points to that version. A `candidate` is withdrawn: the one before it is not tried
    again. Raises ConfigError if there is no earlier version.
    """
    registered = _model_of(alias, model, root)
    if alias == CANDIDATE:
        return withdraw(registered.name, registered.root, str(more.pop("reason", None) or "rolled back"), **more) or _last(
            registered, alias
        )
    return _back(registered, alias, checked, **more)


def _back(
    model: RegisteredModel,
    alias: str,
    checked: bool,
    *,
    by: str | None = None,
    reason: str | None = None,
    key: str | None = None,
    only: int | None = None,
) -> Move:
    def decide(entries: Entries) -> Mapping[str, Any] | None:
        moves = model.moves(alias, entries)
        before = standing(moves)
        if _done(moves, key) or (only is not None and (not before or before[-1] != only)):
            return None
        if len(before) <= 1:
            now = f"{model.name}@{before[-1]}" if before else "nothing"
            raise ConfigError(f"{model.name}@{alias} points to {now}, with no earlier version; promote another one")
        (require_present if checked else check_weights)(model.version(before[-2]))
        about = {"by": by or who(), "time": time.time(), "key": key, "reason": reason}
        return {"version": before[-2], "kind": "rollback", **about}

    return _move(model, alias, decide, key)


def withdraw(
    model: str, root: Path, reason: str, *, only: int | None = None, by: str | None = None, key: str | None = None
) -> Move | None:
    """Remove the alias `candidate` from its version, or from version `only`; return None if it does not point there."""
    registered = RegisteredModel(root, model)

    def decide(entries: Entries) -> Mapping[str, Any] | None:
        moves = registered.moves(CANDIDATE, entries)
        current = moves[-1].version if moves else None
        if current is None or (only is not None and current != only):
            return None
        about = {"by": by or who(), "time": time.time(), "reason": reason, "key": key}
        return {"version": None, "kind": "withdraw", **about}

    number = append_numbered(registered.folder / ALIASES / CANDIDATE, decide)
    return _numbered(registered, CANDIDATE, number) if number is not None else None


def standing(moves: Sequence[Move]) -> list[int]:
    """Return the versions that an alias has pointed to as a stack, without those rolled back; the last is the current one.

    Raises DamagedFileError if a rollback has no move before it.
    """
    stack: list[int] = []
    for move in moves:
        if move.kind == "rollback":
            stack = stack[:-1]
            if not stack or stack[-1] != move.version:
                raise DamagedFileError(
                    f"{ALIASES}/{move.alias}/{move.number:06d}.json of {move.model} rolls back to version {move.version}, "
                    "but the files before it do not record that version; restore those that are missing"
                )
        elif move.version is None:
            stack.clear()
        else:
            stack.append(move.version)
    return stack


def _move(model: RegisteredModel, alias: str, decide: Callable[[Entries], Mapping[str, Any] | None], key: str | None) -> Move:
    with suppress(FileExistsError):
        make_private(model.folder / ALIASES / alias)
    number = append_numbered(model.folder / ALIASES / alias, decide)
    if number is not None:
        return _numbered(model, alias, number)
    return next((move for move in model.history(alias) if key is not None and move.key == key), _last(model, alias))


def _numbered(model: RegisteredModel, alias: str, number: int) -> Move:
    return next(move for move in model.history(alias) if move.number == number)


def _last(model: RegisteredModel, alias: str) -> Move:
    moves = model.history(alias)
    if not moves:
        raise ConfigError(f"{model.name}@{alias} has never pointed to a version; `ropewalk promote MODEL --to {alias}`")
    return moves[-1]


def _done(moves: Sequence[Move], key: str | None) -> bool:
    return key is not None and any(move.key == key for move in moves)


def _model_of(alias: str, name: str | None, root: Path | None) -> RegisteredModel:
    """Return the model NAME, or else the only one that has ever had the alias. Raises ConfigError."""
    models = registered_models(root)
    matches = [model for model in models if (model.name == name if name else model.history(alias))]
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = " or ".join(f"{model.name}@{alias}" for model in matches)
        raise ConfigError(f"{alias}: {len(matches)} models have this alias; name one: {names}")
    names_of_models = ", ".join(model.name for model in models) or "none yet"
    raise ConfigError(f"no model {f'{name!r}' if name else f'has an alias {alias!r}'}; models of the registry: {names_of_models}")

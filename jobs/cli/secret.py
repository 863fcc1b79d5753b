"""The command `secret`."""

import sys
from enum import StrEnum
from typing import Annotated

import typer

from ropewalk.jobs.cli.complete import AsJson, Cluster
from ropewalk.jobs.cli.json_output import print_json


class Action(StrEnum):
    """Actions of `secret`."""

    SET = "set"
    LIST = "list"
    REMOVE = "remove"


def secret(
    action: Annotated[Action, typer.Argument(help="what to do")],
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]", help="name of the secret, that of a variable")] = None,
    on: Cluster = "local",
    as_json: AsJson = False,
) -> None:
    """Set, list or remove secrets of a cluster, which jobs name in their key `secrets` and get as variables.

    `secret set` asks for the value, or reads it from a pipe or file: `ropewalk secret set NAME < FILE`. It is never an argument.
    """
    from ropewalk.cluster.backends.profiles import load_backend
    from ropewalk.cluster.errors import ConfigError
    from ropewalk.jobs.runs.show.view import user_path

    name = _name(action, names or [])
    store = load_backend(on).secret_store()
    if action is Action.SET:
        store.set(name, _value(name))
    elif action is Action.REMOVE and not store.remove(name):
        raise ConfigError(f"{name} is not set on cluster {on!r}; set there: {', '.join(store.names()) or 'none'}")
    if as_json:
        print_json({"cluster": on, "location": store.location, "secrets": list(store.names())})
    elif action is Action.LIST:
        print("\n".join(store.names()) or f"none in {user_path(store.location)}; `ropewalk secret set NAME` sets one")
    else:
        print(f"{name} is {'set' if action is Action.SET else 'removed'} in {user_path(store.location)}")


def _name(action: Action, names: list[str]) -> str:
    """Return the name that an action needs. Raises ConfigError, without repeating what may be a value."""
    from ropewalk.cluster.errors import ConfigError
    from ropewalk.cluster.secrets.store import check_name

    if action is Action.LIST and not names:
        return ""
    if action is Action.LIST or len(names) != 1:
        number = "no name" if action is Action.LIST else "one name; a value is never an argument, which other users could see"
        raise ConfigError(f"`ropewalk secret {action}` takes {number}")
    try:
        return check_name(names[0])
    except ValueError as error:
        raise ConfigError(str(error)) from None


def value_of(action: Action, names: list[str]) -> bytes | None:
    """Read the value that an action needs, for a cluster that is reached through ssh. Raises ConfigError."""
    name = _name(action, names)
    return _value(name).encode() if action is Action.SET else None


def _value(name: str) -> str:
    """Ask for the value without showing it, or read it from a pipe or file. Raises ConfigError."""
    from getpass import getpass

    from ropewalk.cluster.secrets.store import check_value, read_value

    if sys.stdin.isatty():
        return check_value(getpass(f"value of {name} (not shown): "))
    return read_value(sys.stdin.buffer)

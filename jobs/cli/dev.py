"""The command `dev`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ropewalk.jobs.cli import complete
from ropewalk.jobs.cli.complete import AsJson, Cluster, ConfigFile
from ropewalk.jobs.cli.json_output import print_json

LIMIT_MINUTES = 480
KEPT_SECONDS = 30 * 86400.0  # files of earlier runs


def dev(
    *,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE ...]", help="keys, such as resources.gpus=1", autocompletion=complete.keys),
    ] = None,
    config: ConfigFile = None,
    on: Cluster = "local",
    run: Annotated[
        str | None,
        typer.Option("--run", metavar="RUN", help="connect to this run, which `dev` has started from this machine"),
    ] = None,
    forward: Annotated[
        list[int] | None,
        typer.Option("--forward", metavar="PORT", help="port of the node that this machine forwards; repeatable"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Hold a node for ssh, an editor or Jupyter, with your code and environment, until its time limit or `cancel`."""
    import sys

    from ropewalk.cluster.errors import EXIT_INTERRUPTED
    from ropewalk.jobs.cli.known_runs import cluster_of

    if run and on == "local":
        on = cluster_of(run) or on
    started = run or _submit(overrides or [], config, on)
    try:
        node = connect(started, on, forward or [])
    except KeyboardInterrupt:
        on_option = "" if on == "local" else f" --on {on}"
        again = f"`ropewalk dev --run {started}{on_option}` waits again, `ropewalk cancel {started}` ends it"
        sys.stderr.write(f"\n{started} goes on; {again}\n")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if as_json:
        return print_json(node)
    return print("\n".join(_page(node)))


def _submit(overrides: list[str], config: Path | None, on: str) -> str:
    """Submit the run with a key of its own, and return its id."""
    import hashlib
    import json
    import os
    import subprocess

    from ropewalk.cluster.process.command import module_command

    if config is None and not any(each.startswith("resources.time_limit_minutes=") for each in overrides):
        overrides = [f"resources.time_limit_minutes={LIMIT_MINUTES}", *overrides]
    keys = [*overrides, *(["-c", str(config)] if config else []), "--on", on]
    # the same for a command that is repeated after a broken connection, so that it is the same submission
    identity = hashlib.sha256(json.dumps([os.getcwd(), keys]).encode()).hexdigest()[:16]
    new = _folder(f".new-{identity}")
    key = new / "key"
    if not key.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "ropewalk", "-f", str(key)], check=True)
    public = key.with_suffix(".pub").read_text().strip()
    command = module_command("ropewalk.jobs.cli", "submit", "dev", f"authorized={public}", *keys, "--json")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise typer.Exit(done.returncode)
    answer = json.loads(done.stdout.splitlines()[-1])
    new.rename(new.with_name(str(answer["run"])))
    (_folder(str(answer["run"])) / "run").write_text(str(answer["directory"]))
    return str(answer["run"])


def connect(run: str, on: str, ports: list[int]) -> dict[str, Any]:
    """Wait until the run takes sessions, write the configuration for ssh, and try it. Raises ConfigError, BackendError."""
    import subprocess

    from ropewalk.cluster.backends.profiles import load_profile
    from ropewalk.cluster.errors import BackendError, ConfigError

    folder = _folder(run)
    if not (folder / "key").exists():
        folder.rmdir()
        raise ConfigError(
            f"{run}: its key is not on this machine; name by its whole id a run that `ropewalk dev` has started here"
        )
    is_far = bool(load_profile(on).options.get("host"))
    shell = _shell(run if is_far else (folder / "run").read_text(), on if is_far else None)
    done = subprocess.run([*shell, "--", "id", "-un"], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise BackendError(f"{run} takes no sessions; `ropewalk why {run}` explains its state")
    file = folder / "config"
    file.write_text(_configuration(run, done.stdout.strip(), shell, folder / "key", ports))
    tried = subprocess.run(["ssh", "-F", str(file), run, "pwd"], stdout=subprocess.PIPE, text=True, check=False)
    if tried.returncode:
        raise BackendError(f"{run}: ssh does not reach it; `ropewalk logs {run}` has what the node says")
    return {"run": run, "host": run, "ssh_config": str(file), "folder": tried.stdout.strip()}


def _shell(run: str, on: str | None) -> list[str]:
    """Return the command that starts a program on the node, from any directory."""
    import os

    from ropewalk.cluster.backends.profiles import PROFILES_VARIABLE, profile_file
    from ropewalk.cluster.process.command import module_command

    profiles = profile_file()
    variables = [f"{PROFILES_VARIABLE}={os.path.abspath(profiles)}"] if profiles else []
    options = ["--wait", *(["--on", on] if on else [])]
    return ["env", *variables, *module_command("ropewalk.jobs.cli", "shell", run, *options)]


def _configuration(run: str, user: str, shell: list[str], key: Path, ports: list[int]) -> str:
    import shlex

    program = ["sh", "-c", 'exec "$ROPEWALK_PYTHON" -P -m ropewalk.jobs.orchestration.dev.connect']
    lines = [
        f"Host {run}",
        f"User {user}",
        f"IdentityFile {key}",
        "IdentitiesOnly yes",
        f"ProxyCommand {shlex.join([*shell, '--stdin', '--', *program]).replace('%', '%%')}",
        # the way to the node is an authenticated one; its key is another one in every attempt
        "StrictHostKeyChecking no",
        "UserKnownHostsFile /dev/null",
        "LogLevel ERROR",
        "ServerAliveInterval 15",
        "ServerAliveCountMax 4",
        *(f"LocalForward {port} localhost:{port}" for port in ports),
    ]
    return "\n    ".join(lines) + "\n"


def _page(node: dict[str, Any]) -> list[str]:
    host = node["host"]
    return [
        f"{host} is reachable until its time limit, or until `ropewalk cancel {host}`:",
        f"  ssh -F {node['ssh_config']} {host}",
        f"Once `Include {_folders()}/*/config` is the first line of ~/.ssh/config, any program that uses ssh reaches it:",
        f"  ssh {host}",
        f"  code --remote ssh-remote+{host} {node['folder']}",
        f"  rsync -a data/ {host}:data/",
        f"  ssh -L 8888:localhost:8888 {host} jupyter lab --no-browser --port 8888",
    ]


def _folder(run: str) -> Path:
    """Return the folder of a run's files on this machine; those of old runs are removed."""
    import shutil
    import time

    for old in _folders().glob("*"):
        if time.time() - old.stat().st_mtime > KEPT_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    folder = _folders() / run
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _folders() -> Path:
    from ropewalk.jobs.cli.known_runs import state_dir

    return state_dir() / "dev"

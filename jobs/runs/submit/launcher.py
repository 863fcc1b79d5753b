"""Starts trials' runs as a user would: outside Ray, in the user's environment, with no signal blocked.

What ends the sweep's driver or its Ray ends all their descendants, and blocks the scheduler's signals in what they start; a
trial must outlive them, and must get its signals. So this process detaches itself from the driver, ends when the driver is
gone, and forks a short-lived child for each request.

Usage: python -m ropewalk.jobs.runs.submit.launcher FOLDER DRIVER_PID [MODULE...]. The modules are loaded once for all local
trials.
"""

import argparse
import json
import logging
import os
import signal
import socket
import socketserver
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from ropewalk.cluster.backends.local.nodes import OUTER_TMPDIR_VARIABLE
from ropewalk.cluster.backends.profiles import load_backend
from ropewalk.cluster.errors import AlreadyRunningError, BackendError, RopewalkError
from ropewalk.cluster.gpus import ALL, DEVICES_VARIABLE, MACHINE_DEVICES_VARIABLE, NODE_GPUS_VARIABLE, users_devices
from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.process.fork_server import FORK_SERVER_VARIABLE, start_fork_server
from ropewalk.cluster.process.output import configure_logging
from ropewalk.cluster.process.ports import NODE_CPUS_VARIABLE
from ropewalk.cluster.process.scratch import keep, make_scratch, remove_scratch
from ropewalk.cluster.process.signals import STOP_SIGNALS, stop_signals_blocked
from ropewalk.cluster.run.context import STOP_VARIABLE
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.runs.submit.submit import resume

log = logging.getLogger(__name__)

OURS = frozenset({"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS", STOP_VARIABLE, NODE_CPUS_VARIABLE, OUTER_TMPDIR_VARIABLE})
OURS |= {NODE_GPUS_VARIABLE, MACHINE_DEVICES_VARIABLE, DEVICES_VARIABLE}
SOCKET, TEMPLATE = "s", "t"  # in the launcher's folder
POLL_SECONDS = 0.5
START_SECONDS = 60.0
ANSWER_SECONDS = 300.0  # a scheduler may take its time, and so may the loading of modules
EXIT_SECONDS = 10.0


# --- the driver's side


@contextmanager
def launcher(output: Path, environment: Mapping[str, str], modules: Sequence[str]) -> Iterator[Path]:
    """Run a launcher while the block lasts; yields the folder for `ask`. If this process is killed, the launcher ends too."""
    variables = users_environment(environment)
    # outside the node's own disk, whose owner ends whatever names it
    folder = make_scratch("w", variables.get("TMPDIR"))
    command = module_command("ropewalk.jobs.runs.submit.launcher", str(folder), str(os.getpid()), *modules)
    try:
        with output.open("ab") as stream, stop_signals_blocked():
            subprocess.run(command, env=variables, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, check=True)
        deadline = time.monotonic() + START_SECONDS
        while not (folder / SOCKET).exists():
            if time.monotonic() > deadline:
                raise RuntimeError(f"the launcher did not start; see {output}")
            time.sleep(0.01)
        yield folder
        (folder / SOCKET).unlink()
        deadline = time.monotonic() + EXIT_SECONDS
        while folder.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        remove_scratch(folder)


def ask(folder: Path, verb: str, run: RunDir, gpus: str = "") -> None:
    """Have a run submitted (`submit`), resumed (`resume`) or told to end (`cancel`). Raises BackendError, of which an
    AlreadyRunningError where an earlier submission of the run is still under way.

    `gpus` are the devices of this machine that a local trial may use, as CUDA counts them; empty: any.
    """
    request = {"verb": verb, "run": str(run.path), "gpus": gpus}
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ANSWER_SECONDS)
            connection.connect(str(folder / SOCKET))
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as stream:
                answer = json.loads(stream.readline() or b'{"error": "the launcher died of the request"}')
    except OSError as error:
        raise BackendError(f"the launcher of runs does not answer: {error}") from error
    if answer.get("active"):
        raise AlreadyRunningError(run.id, answer["active"])
    if answer["error"]:
        raise BackendError(f"{run.id}: {answer['error']}")


def users_environment(more: Mapping[str, str]) -> dict[str, str]:
    """The user's environment when the sweep was submitted, as far as an agent's environment still tells it, and `more`."""
    plain = {name: value for name, value in os.environ.items() if name not in OURS}
    # an agent's own temporary directory lies in that of its node
    inner = plain.pop("TMPDIR", None)
    outer = os.environ.get(OUTER_TMPDIR_VARIABLE) or (str(Path(inner).parent) if inner else None)
    devices = users_devices()
    return {
        **plain,
        **({"TMPDIR": outer} if outer else {}),
        **({DEVICES_VARIABLE: devices} if devices != ALL else {}),
        **more,
    }


# --- the launcher's side


class _Server(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
    """Forks a child for each request, which does nothing else."""

    timeout = POLL_SECONDS
    request_queue_size = 64
    block_on_close = False


class _Request(socketserver.StreamRequestHandler):
    """One request, in a child of its own, which executes and answers it, and ends."""

    def handle(self) -> None:
        """Answer with the error, if there was one; `active` names what is under way where a submission was refused for that."""
        error = active = ""
        try:
            request = json.loads(self.rfile.readline())
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
            if request["gpus"]:
                os.environ[DEVICES_VARIABLE] = request["gpus"]
            execute(request["verb"], RunDir(request["run"]))
        except AlreadyRunningError as refused:
            error, active = str(refused), refused.active
        except RopewalkError as refused:
            error = str(refused)
        except Exception as bug:  # the answer is all that becomes of this process
            log.exception("a request failed")
            error = f"{type(bug).__name__}: {bug}"
        self.wfile.write(json.dumps({"error": error, "active": active}).encode() + b"\n")


def serve(folder: Path, driver: psutil.Process) -> None:
    """Answer requests until the driver is gone, or has taken the socket away."""
    place = folder / SOCKET
    with _Server(str(place), _Request) as server:
        while place.exists() and driver.is_running() and driver.status() != psutil.STATUS_ZOMBIE:
            server.handle_request()


def execute(verb: str, run: RunDir) -> None:
    """Submit, resume or cancel a run, as `ask` has requested."""
    backend = load_backend(run.record["cluster"])
    if verb == "submit":
        backend.submit(run, run.resources())
    elif verb == "resume":
        resume(run)
    else:
        backend.cancel(run)


def main() -> None:
    """Detach, and serve one sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("driver", type=int)
    parser.add_argument("modules", nargs="*")
    arguments = parser.parse_args()
    driver = psutil.Process(arguments.driver)
    if os.fork():
        os._exit(0)
    os.setsid()
    configure_logging("launcher")
    template: subprocess.Popen[bytes] | None = None
    folder: Path = arguments.folder
    keep(folder)  # though the driver be killed
    try:
        if arguments.modules:
            os.environ[FORK_SERVER_VARIABLE] = str(folder / TEMPLATE)
            template = start_fork_server(folder / TEMPLATE, arguments.modules, folder / "template.log")
        serve(folder, driver)
    finally:
        if template is not None:
            template.kill()
            template.wait()
        remove_scratch(folder)


if __name__ == "__main__":
    main()

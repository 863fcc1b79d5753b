"""Launcher of trials' runs outside Ray, in the user's environment, with no signal blocked.

Descendants of a sweep's driver or its Ray are killed together with it, and start with the scheduler's signals blocked. A trial
must outlive them and get its signals. So this process detaches itself from the driver, exits when the driver is gone, and
forks a short-lived child for each request.

Usage: python -m ropewalk.jobs.runs.submit.launcher FOLDER DRIVER_PID [MODULE...]. The modules are imported once for all local
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
from ropewalk.cluster.backends.profiles import backend_of
from ropewalk.cluster.errors import AlreadyRunningError, BackendError, RopewalkError
from ropewalk.cluster.gpus import ALL, DEVICES_VARIABLE, MACHINE_DEVICES_VARIABLE, NODE_GPUS_VARIABLE, users_devices
from ropewalk.cluster.process.child_output import child_output
from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.process.fork_server import FORK_SERVER_VARIABLE, start_fork_server
from ropewalk.cluster.process.output import configure_logging
from ropewalk.cluster.process.ports import NODE_CPUS_VARIABLE
from ropewalk.cluster.process.scratch import keep, make_scratch, remove_scratch
from ropewalk.cluster.process.signals import STOP_SIGNALS, stop_signals_blocked
from ropewalk.cluster.run.context import STOP_VARIABLE
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.secrets.variables import RunSecrets
from ropewalk.jobs.runs.submit.resume import resume

log = logging.getLogger(__name__)

OURS = frozenset({"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS", STOP_VARIABLE, NODE_CPUS_VARIABLE, OUTER_TMPDIR_VARIABLE})
OURS |= {NODE_GPUS_VARIABLE, MACHINE_DEVICES_VARIABLE, DEVICES_VARIABLE}
SOCKET, TEMPLATE = "s", "t"  # in the launcher's folder
POLL_SECONDS = 0.5
START_SECONDS = 60.0
ANSWER_SECONDS = 300.0  # includes slow schedulers and imports
EXIT_SECONDS = 10.0


# --- the driver's side


@contextmanager
def launcher(output: Path, environment: Mapping[str, str], modules: Sequence[str]) -> Iterator[Path]:
    """Run a launcher during the block, and yield its folder for `ask`. If this process is killed, the launcher exits too."""
    variables = users_environment(environment)
    # not on the node's disk, since processes that refer to it are killed together with the node
    folder = make_scratch("w", variables.get("TMPDIR"))
    command = module_command("ropewalk.jobs.runs.submit.launcher", str(folder), str(os.getpid()), *modules)
    try:
        with child_output(output, RunSecrets.inherited()) as stream, stop_signals_blocked():
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
    """Have a run submitted, resumed or cancelled (`verb`: `submit`, `resume`, `cancel`).

    `gpus`: the devices of this machine that a local trial may use, as in CUDA_VISIBLE_DEVICES; empty: any. Raises
    AlreadyRunningError if an earlier submission of the run is active, else BackendError.
    """
    request = {"verb": verb, "run": str(run.path), "gpus": gpus}
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ANSWER_SECONDS)
            connection.connect(str(folder / SOCKET))
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as stream:
                answer = json.loads(stream.readline() or b'{"error": "the launcher crashed"}')
    except OSError as error:
        raise BackendError(f"the launcher of runs does not answer: {error}") from error
    if answer.get("active"):
        raise AlreadyRunningError(run.id, answer["active"])
    if answer["error"]:
        raise BackendError(f"{run.id}: {answer['error']}")


def users_environment(more: Mapping[str, str]) -> dict[str, str]:
    """Return the user's environment at submission, reconstructed from the agent's environment, updated with `more`."""
    plain = {name: value for name, value in os.environ.items() if name not in OURS}
    # the temporary directory of an agent is inside that of its node
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
    """Server that forks a child for each request."""

    timeout = POLL_SECONDS
    request_queue_size = 64
    block_on_close = False


class _Request(socketserver.StreamRequestHandler):
    """Handler of one request, in a forked child."""

    def handle(self) -> None:
        """Execute the request, and answer with its error, if any; `active` describes an earlier submission that is active."""
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
        except Exception as bug:  # report every error in the answer
            log.exception("a request failed")
            error = f"{type(bug).__name__}: {bug}"
        self.wfile.write(json.dumps({"error": error, "active": active}).encode() + b"\n")


def serve(folder: Path, driver: psutil.Process) -> None:
    """Answer requests until the driver is gone, or has removed the socket."""
    path = folder / SOCKET
    with _Server(str(path), _Request) as server:
        while path.exists() and driver.is_running() and driver.status() != psutil.STATUS_ZOMBIE:
            server.handle_request()


def execute(verb: str, run: RunDir) -> None:
    """Submit, resume or cancel a run."""
    backend = backend_of(run)
    if verb == "submit":
        backend.submit(run, run.resources())
    elif verb == "resume":
        resume(run)
    else:
        backend.cancel(run)


def main() -> None:
    """Detach this process, and serve one sweep."""
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
    keep(folder)  # even if the driver is killed
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

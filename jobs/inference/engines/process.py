"""The process of an engine: start, readiness with the cause of a failure, requests, stop with all children."""

import os
import re
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import psutil

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.gpus import share_environment
from ropewalk.cluster.process.child_output import child_output
from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.process.kill import family
from ropewalk.cluster.process.ports import BACKLOG, free_port
from ropewalk.cluster.secrets.variables import RunSecrets
from ropewalk.jobs.inference.engines.engine import Engine, EngineError, EngineOptions

LOOK_SECONDS = 0.05
ANSWER_SECONDS = 2.0  # limit of a health check
STOP_SECONDS = 5.0  # from SIGTERM to SIGKILL
TAIL_BYTES = 20_000
CAUSE_LINES = 4
# lines without the cause: frames of a traceback, earlier log lines, progress bars
NOISE = re.compile(r"Traceback \(most recent|  File |    |([\d-]+ [\d:,]+ )?(INFO|WARNING|warn)|.*\d%\|")


class EngineProcess:
    """A running engine. It ends with the process that started it, and as a context manager with the block."""

    def __init__(self, process: "subprocess.Popen[bytes]", url: str, log: Path, token: str | None) -> None:
        self.process, self.url, self.log = process, url, log
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}

    @classmethod
    def start(cls, engine: Engine, model: Path, options: EngineOptions, log: Path) -> "EngineProcess":
        """Start an engine for the Hugging Face directory of a model; its output goes to `log`.

        Raises ConfigError if the engine is unavailable or the port is taken, and the errors of `prepare`.
        """
        if (reason := engine.unavailable(options)) is not None:
            raise ConfigError(f"engine {engine.name} is not available: {reason}")
        if options.draft is not None:
            if not engine.capabilities.drafts:
                raise ConfigError(f"engine {engine.name} takes no draft; leave draft unset, or choose another engine")
            options = replace(options, draft=engine.prepare(options.draft, options))
        prepared = engine.prepare(model, options)
        log.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as resources:
            port, inherited = options.port or free_port(options.host), list[int]()
            if engine.inherits_socket:
                listener = resources.enter_context(_listen(options.host, options.port))
                port, inherited = int(listener.getsockname()[1]), [listener.fileno()]
            command = engine.command(prepared, replace(options, port=port))
            command += [argument for number in inherited for argument in ("--fd", str(number))]
            output = resources.enter_context(child_output(log, RunSecrets.inherited()))
            process = subprocess.Popen(
                command,
                env={**os.environ, **share_environment(options.gpus), **engine.environment(options)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=inherited,
                start_new_session=True,  # a Ctrl-C at the terminal must reach the parent only
            )
        shown = f"[{options.host}]" if ":" in options.host else options.host
        return cls(process, f"http://{shown}:{port}", log, options.token)

    def alive(self) -> bool:
        """Return True while the process runs."""
        return self.process.poll() is None

    def healthy(self, seconds: float = ANSWER_SECONDS) -> bool:
        """Return True if the engine can answer requests now."""
        try:
            with self._client(seconds) as client:
                return client.get("/health").status_code == 200
        except httpx2.HTTPError:
            return False

    def await_ready(self, seconds: float) -> None:
        """Wait until the engine can answer. Raises EngineError with the cause if it ends or takes longer than `seconds`."""
        deadline = time.monotonic() + seconds
        while not self.healthy():
            if not self.alive():
                raise EngineError(f"the engine ended with exit code {self.process.returncode}: {self.cause()}")
            if time.monotonic() > deadline:
                raise EngineError(f"the engine is not ready after {seconds:.0f} s; end of its log: {self.cause()}")
            time.sleep(LOOK_SECONDS)

    def ask(self, path: str, body: Mapping[str, Any] | None = None, *, seconds: float = 600.0) -> dict[str, Any]:
        """Request JSON: GET without a body, POST with one. Raises EngineError with the engine's error message."""
        try:
            method, content = ("GET", None) if body is None else ("POST", dict(body))
            with self._client(seconds) as client:
                answer = client.request(method, path, json=content)
        except httpx2.HTTPError as error:
            raise EngineError(f"{self.url}{path}: {error or type(error).__name__}; end of its log: {self.cause()}") from None
        if answer.status_code != 200:
            raise EngineError(f"{self.url}{path} answers {answer.status_code}: {answer.text[:500]}")
        result: dict[str, Any] = answer.json()
        return result

    def _client(self, seconds: float) -> httpx2.Client:
        # plain HTTP needs no certificates, and reading them would take longer than the answer
        return httpx2.Client(base_url=self.url, headers=self.headers, timeout=seconds, verify=False)

    def cause(self) -> str:
        """Return the most informative lines at the end of the log; of a traceback the last one."""
        try:
            with self.log.open("rb") as stream:
                stream.seek(max(0, self.log.stat().st_size - TAIL_BYTES))
                lines = stream.read().decode(errors="replace").splitlines()
        except OSError as error:
            return f"its log cannot be read: {error}"
        relevant = [line.strip() for line in lines if line.strip() and not NOISE.match(line)]
        return f"{' / '.join(relevant[-CAUSE_LINES:]) or 'it logged nothing'} ({self.log})"

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Stop the engine and its children: SIGTERM, then SIGKILL after `seconds`."""
        everyone = family(self.process.pid) if self.alive() else []
        if self.alive():
            self.process.terminate()
        _, left = psutil.wait_procs(everyone, timeout=seconds)
        for process in left:
            process.kill()
        self.process.wait()

    def __enter__(self) -> "EngineProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def our_command(module: str, model: Path, options: EngineOptions) -> list[str]:
    """Return the command line of a built-in engine; all take the same options."""
    command = module_command(module, str(model), "--host", options.host, "--port", str(options.port))
    command += ["--slots", str(options.slots), "--parent", str(os.getpid())]
    for key, value in (("threads", options.threads), ("context", options.context), ("name", options.name)):
        command += [f"--{key}", str(value)] if value is not None else []
    if options.draft is not None:
        command += ["--draft", str(options.draft), "--draft-tokens", str(options.draft_tokens)]
    return command


def _listen(host: str, port: int) -> socket.socket:
    family_, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family_, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"engine: cannot listen on {host}:{port}: {error.strerror}; choose another port, or 0") from None
    return listener

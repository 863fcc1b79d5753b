"""The process of a built-in engine: command line, socket, and loading while `/health` already answers."""

import argparse
import asyncio
import logging
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropewalk.cluster.errors import RopewalkError
from ropewalk.cluster.process.ports import BACKLOG
from ropewalk.jobs.inference.engines.engine import TOKEN_VARIABLE, EngineOptions
from ropewalk.jobs.inference.engines.parent import end_with_parent

if TYPE_CHECKING:
    from ropewalk.jobs.inference.engines.api.app import Loaded

LEAVE_SECONDS = 2  # grace for running answers after SIGTERM

Load = Callable[[str, EngineOptions], "Loaded"]


def main(program: str, load: Load) -> None:
    """Serve the model named on the command line."""
    arguments = _arguments(program)
    configure_logging()
    if arguments.parent is not None:
        end_with_parent(arguments.parent)
    options = EngineOptions(
        host=arguments.host,
        port=arguments.port,
        slots=arguments.slots,
        threads=arguments.threads,
        context=arguments.context,
        name=arguments.name or Path(arguments.model).name,
        draft=arguments.draft,
        draft_tokens=arguments.draft_tokens,
        token=os.environ.pop(TOKEN_VARIABLE, "") or None,
    )
    listener = socket.socket(fileno=arguments.fd) if arguments.fd is not None else _listener(arguments.host, arguments.port)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        code = runner.run(_serve(arguments.model, options, listener, load))
    sys.stderr.flush()
    os._exit(code)  # do not wait for threads of libraries


class PrivateFormatter(logging.Formatter):
    """Format exceptions without their messages and causes, which may quote a request."""

    def formatException(self, ei: Any) -> str:  # noqa: N802 - overrides
        kind, _, frames = ei
        return f"{''.join(traceback.format_tb(frames))}{kind.__module__}.{kind.__qualname__}"


def configure_logging() -> None:
    """Log to the standard error; no line quotes a request."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)
    formatter = PrivateFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger().handlers[0].setFormatter(formatter)
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs every request


async def _serve(model: str, options: EngineOptions, listener: socket.socket, load: Load) -> int:
    import uvicorn  # imported late: it takes seconds, in which the parent may have ended

    from ropewalk.jobs.inference.engines.api.app import Api

    assert options.name is not None
    api = Api(options.name, options.token)
    config = uvicorn.Config(
        api.app,
        log_config=None,  # logs as configured above
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=LEAVE_SECONDS,
        server_header=False,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    loading = asyncio.create_task(asyncio.to_thread(load, model, options))
    await asyncio.wait({serving, loading}, return_when=asyncio.FIRST_COMPLETED)
    if not loading.done():  # stopped while loading
        return 0
    try:
        api.loaded = loading.result()
    except RopewalkError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the parent reads it in the log
        return 1
    host, port = listener.getsockname()[:2]
    logging.getLogger(__name__).info("%s is served at http://%s:%s", options.name, host, port)
    await serving
    api.loaded.sampler.close()
    return 0


def _arguments(program: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program,
        description=f"Load a model and speak the OpenAI API on one address. The API token, if any, is in ${TOKEN_VARIABLE}.",
    )
    parser.add_argument("model", help="a Hugging Face directory, a run, or a file prepared by the engine")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0: any free port")
    parser.add_argument("--fd", type=int, default=None, help="file descriptor of an inherited listening socket")
    parser.add_argument("--slots", type=int, default=4, help="requests answered at the same time")
    parser.add_argument("--threads", type=int, default=None, help="number of computing threads")
    parser.add_argument("--context", type=int, default=None, help="maximum tokens of a request with its answer")
    parser.add_argument("--name", default=None, help="name of the model in the API")
    parser.add_argument("--draft", type=Path, default=None, help="a smaller model with the same tokens for speculative decoding")
    parser.add_argument("--draft-tokens", type=int, default=3, help="maximum number of speculative tokens")
    parser.add_argument("--parent", type=int, default=None, help="process id; this process ends with it")
    return parser.parse_args()


def _listener(host: str, port: int) -> socket.socket:
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=BACKLOG)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's event loop, if it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory

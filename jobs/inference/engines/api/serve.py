"""The process of an engine of ours: its command line, its socket, the model that is loaded while `/health` answers already."""

import argparse
import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ropewalk.cluster.errors import RopewalkError
from ropewalk.cluster.process.ports import BACKLOG
from ropewalk.jobs.inference.engines.engine import TOKEN_VARIABLE, EngineOptions
from ropewalk.jobs.inference.engines.parent import end_with_parent

if TYPE_CHECKING:
    from ropewalk.jobs.inference.engines.api.app import Loaded

LEAVE_SECONDS = 2  # for answers under way, after SIGTERM

Load = Callable[[str, EngineOptions], "Loaded"]


def main(program: str, load: Load) -> None:
    """Serve the model that the command line names."""
    given = _arguments(program)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line a request
    if given.parent is not None:
        end_with_parent(given.parent)
    options = EngineOptions(
        host=given.host,
        port=given.port,
        slots=given.slots,
        threads=given.threads,
        context=given.context,
        name=given.name or Path(given.model).name,
        draft=given.draft,
        draft_tokens=given.draft_tokens,
        token=os.environ.pop(TOKEN_VARIABLE, "") or None,
    )
    listener = socket.socket(fileno=given.fd) if given.fd is not None else _listener(given.host, given.port)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        code = runner.run(_serve(given.model, options, listener, load))
    sys.stderr.flush()
    os._exit(code)  # threads of the libraries below have nothing to say any more


async def _serve(model: str, options: EngineOptions, listener: socket.socket, load: Load) -> int:
    import uvicorn  # this and the API take seconds: whoever started this process may be gone by then

    from ropewalk.jobs.inference.engines.api.app import Api

    assert options.name is not None
    api = Api(options.name, options.token)
    config = uvicorn.Config(
        api.app,
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
    if not loading.done():  # asked to leave meanwhile
        return 0
    try:
        api.loaded = loading.result()
    except RopewalkError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the last word of a process of its own
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
    parser.add_argument("model", help="a Hugging Face directory, a run, or what the engine has made of one")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one")
    parser.add_argument("--fd", type=int, default=None, help="a socket that listens already, inherited")
    parser.add_argument("--slots", type=int, default=4, help="requests that are answered at the same time")
    parser.add_argument("--threads", type=int, default=None, help="that compute")
    parser.add_argument("--context", type=int, default=None, help="tokens of a request and its answer at most")
    parser.add_argument("--name", default=None, help="what the API calls the model")
    parser.add_argument("--draft", type=Path, default=None, help="a smaller model with the same tokens, which guesses ahead")
    parser.add_argument("--draft-tokens", type=int, default=3, help="tokens that it guesses at once, at most")
    parser.add_argument("--parent", type=int, default=None, help="the process with which this one ends")
    return parser.parse_args()


def _listener(host: str, port: int) -> socket.socket:
    found = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=BACKLOG)
    return found


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The loop of uvloop, where that is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory

"""HTTP server of the page: on loopback, opened by a link that works once; it reads files and changes nothing."""

import asyncio
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from ropewalk.cluster.errors import ConfigError, RopewalkError
from ropewalk.cluster.local_access import HEADERS, LOOPBACK, LocalAccess
from ropewalk.cluster.page import style
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.runs.show.status import find_run
from ropewalk.jobs.runs.ui import answers

MAX_RUNS = 100  # in one comparison
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Runs · Ropewalk</title><link rel="icon" href="data:,"><link rel="stylesheet" href="/ui.css">
<script src="/ui.js" defer></script></head>
<body><main id="main"><noscript>This page needs JavaScript.</noscript></main></body></html>
"""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def application(access: LocalAccess) -> web.Application:
    """Return the application, which answers only requests for this machine with the cookie of a redeemed link."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        response: web.StreamResponse | None = _refusal(request, access)
        if response is None:
            try:
                response = await handler(request)
            except RopewalkError as error:
                response = _json({"error": str(error)}, 400)
            except web.HTTPException as error:
                response = web.Response(status=error.status, text=error.reason)
        response.headers.update(HEADERS)
        return response

    app = web.Application(middlewares=[guard])
    app.router.add_get("/", _page)
    app.router.add_get("/ui.js", partial(_file, "ui.js", "text/javascript"))
    app.router.add_get("/ui.css", partial(_file, "ui.css", "text/css"))
    app.router.add_get("/api/runs", _list)
    app.router.add_get("/api/runs/{run}", _run)
    app.router.add_get("/api/curves", _curves)
    app.router.add_get("/api/comparison", _comparison)
    return app


def _refusal(request: web.Request, access: LocalAccess) -> web.Response | None:
    """Return the response to a request that needs no handler, or may not have one."""
    has_cookie = access.has_cookie(request.headers.get("Cookie"))
    if not access.is_local(request.headers.get("Host")):
        return web.Response(status=421, text="This server only answers requests for 127.0.0.1.")
    if request.path == "/" and (token := request.query.get("token")):
        if cookie := access.redeem(token):
            return web.Response(status=303, headers={"Location": "/", "Set-Cookie": cookie})
        if has_cookie:
            return web.Response(status=303, headers={"Location": "/"})
        return web.Response(status=403, text="This link has been used already. Press Enter in the terminal of `ropewalk ui`.")
    return None if has_cookie else web.Response(status=403, text="Open the link printed by `ropewalk ui`.")


async def _page(request: web.Request) -> web.Response:
    return web.Response(text=_PAGE, content_type="text/html")


async def _file(name: str, kind: str, request: web.Request) -> web.Response:
    text = (Path(__file__).parent / name).read_text()
    return web.Response(text=style() + text if kind == "text/css" else text, content_type=kind)


async def _list(request: web.Request) -> web.Response:
    return _json(await asyncio.to_thread(answers.list_answer))


async def _run(request: web.Request) -> web.Response:
    return _json(await asyncio.to_thread(lambda: answers.run_answer(find_run(request.match_info["run"]))))


async def _curves(request: web.Request) -> web.Response:
    keys = request.query.getall("key", [])
    return _json(await asyncio.to_thread(lambda: answers.curves_answer(_named(request), keys)))


async def _comparison(request: web.Request) -> web.Response:
    return _json(await asyncio.to_thread(lambda: answers.comparison_answer(_named(request))))


def _named(request: web.Request) -> list[RunDir]:
    """Return the runs that a request names. Raises ConfigError."""
    names = request.query.getall("run", [])
    if not 0 < len(names) <= MAX_RUNS:
        raise ConfigError(f"{len(names)} runs are named; name 1 to {MAX_RUNS}")
    return [find_run(name) for name in names]


def _json(value: Any, status: int = 200) -> web.Response:
    """Return a response; NaN and infinite numbers are null, as JSON has none."""
    body = orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS)
    return web.Response(body=body, content_type="application/json", status=status)


async def start(port: int) -> tuple[web.AppRunner, LocalAccess]:
    """Start to serve on a port, 0 for a free one. Raises ConfigError if it is taken."""
    try:
        listener = socket.create_server((LOOPBACK, port))
    except OSError as error:
        raise ConfigError(f"port {port} of {LOOPBACK}: {error.strerror}; --port 0 takes a free one") from error
    access = LocalAccess("ui", listener.getsockname()[1])
    runner = web.AppRunner(application(access), access_log=None)  # the log would contain the link
    await runner.setup()
    await web.SockSite(runner, listener).start()
    return runner, access


async def serve(port: int, on_start: Callable[[LocalAccess], None]) -> None:
    """Serve until SIGINT or SIGTERM; Enter at a terminal calls `on_start` again. Raises ConfigError if the port is taken."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    runner, access = await start(port)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    on_start(access)
    if sys.stdin.isatty():
        loop.add_reader(sys.stdin, lambda: on_start(access) if sys.stdin.readline() else loop.remove_reader(sys.stdin))
    await ended.wait()
    await runner.cleanup()

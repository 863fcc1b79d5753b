"""Clients that nobody wishes for: slow ones, ones that hang up or send garbage, and thousands that say nothing."""

import asyncio
import random
import resource
import socket
import time
from contextlib import suppress

HOST = "127.0.0.1"
SPARE_FILES = 500  # of this process, beside idle connections
HEAD = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


async def send_slowly(port: int, count: int, seconds: float) -> int:
    """Send requests without a token, a byte a second. Return how many were closed by the endpoint."""

    async def trickle(number: int) -> bool:
        reader, writer = await asyncio.open_connection(HOST, port)
        head = "" if number % 2 else f"{HEAD}Content-Length: 1000000\r\n\r\n"  # the other half sends its head so slowly
        writer.write(head.encode())
        deadline = time.monotonic() + seconds
        try:
            while time.monotonic() < deadline:
                writer.write(b"{" if head else b"P")
                await writer.drain()
                with suppress(TimeoutError):
                    if not await asyncio.wait_for(reader.read(4096), 1.0):
                        return True
        finally:
            writer.close()
        return False

    results = await asyncio.gather(*(trickle(number) for number in range(count)), return_exceptions=True)
    return sum(result is not False for result in results)


async def hang_up(port: int, token: str, count: int, draw: random.Random) -> int:
    """Ask for streams and close the connection at a random moment. Return how many had begun to answer."""

    async def leave() -> bool:
        body = '{"stream": true, "max_tokens": 60, "messages": [{"role": "user", "content": "hangs up"}]}'
        reader, writer = await asyncio.open_connection(HOST, port)
        cut = draw.choice([len(body), len(body), draw.randrange(len(body))])
        writer.write(f"{HEAD}Authorization: Bearer {token}\r\nContent-Length: {len(body)}\r\n\r\n{body[:cut]}".encode())
        answered = False
        with suppress(TimeoutError):
            answered = bool(await asyncio.wait_for(reader.read(4096), draw.uniform(0.0, 1.0)))
        if draw.random() < 0.5:
            writer.transport.abort()
        writer.close()
        return answered

    results = await asyncio.gather(*(leave() for _ in range(count)), return_exceptions=True)
    return sum(result is True for result in results)


async def send_garbage(port: int, count: int, draw: random.Random) -> int:
    """Send bytes that are no requests. Return how many were answered by 4xx or closed."""

    async def send() -> bool:
        reader, writer = await asyncio.open_connection(HOST, port)
        kinds = (draw.randbytes(draw.randint(1, 5000)), HEAD.encode() + draw.randbytes(200), HEAD.encode() * 30, b"\r\n" * 500)
        writer.write(draw.choice(kinds))
        answer = b""
        with suppress(TimeoutError, ConnectionError):
            await writer.drain()
            writer.write_eof()
            answer = await asyncio.wait_for(reader.read(4096), 5.0)
        writer.close()
        return not answer or answer.startswith(b"HTTP/1.1 4")

    results = await asyncio.gather(*(send() for _ in range(count)), return_exceptions=True)
    return sum(result is True or isinstance(result, ConnectionError) for result in results)


async def stay_idle(port: int, count: int, seconds: float) -> int:
    """Hold connections that send nothing, of several addresses. Return how many could be opened."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limit = count + SPARE_FILES if hard == resource.RLIM_INFINITY else min(hard, count + SPARE_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    connections: list[socket.socket] = []

    def connect() -> None:
        addresses = (f"127.0.{number % 4}.2" for number in range(min(count, limit - SPARE_FILES)))
        connections.extend(socket.create_connection((HOST, port), 30, source_address=(each, 0)) for each in addresses)

    try:
        with suppress(OSError):
            await asyncio.to_thread(connect)
        await asyncio.sleep(seconds)
        return len(connections)
    finally:
        for connection in connections:
            connection.close()

"""Requests that are nearly right: no 500, no traceback, no crash.

python -m tests.benchmarks.fuzz_gateway [--requests 1000000] [--cases 10000] [--seed 0] [--at-once 48]

First requests fuzzed by bytes: HTTP/1.1 with bits flipped, parts deleted, repeated, exchanged and cut, several on one connection.
Then cases that schemathesis draws from tests/jobs/serving/serve/gateway/openapi.json, in an environment of its own.
"""

import argparse
import asyncio
import random
import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.jobs.serving.serve.gateway.endpoint import Endpoint, FakeEngine
from tests.testers import ROOT, conformance_tools

DESCRIPTION = ROOT / "tests/jobs/serving/serve/gateway/openapi.json"
OPERATIONS = 8  # of the description
MOST_ON_ONE_CONNECTION = 4
ANSWER_SECONDS = 0.5
TOKEN = "token"
WITH_TOKEN = {"environment": {"FUZZ_TOKEN": TOKEN}, "auth": {"variable": "FUZZ_TOKEN"}}
STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
CHAT = b'{"messages": [{"role": "user", "content": "\xc3\xa9 \\u0041"}], "max_tokens": 2, "stream": true, "temperature": 0}'
COMPLETION = b'{"model": "production", "prompt": ["a", "b"], "max_tokens": 2, "n": 1, "stop": ["x"], "seed": 7, "timeout": 5}'
FEEDBACK = b'{"answer_id": "req-1", "rating": "up", "correction": [{"role": "assistant", "content": "b"}]}'
# what a byte alone seldom makes
PIECES = (
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b"\r\n\r\n",
        b" ",
        b":",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"%00",
        b"//",
        b"?a=b#c",
        b"1e999",
        b"-1",
        b"0x10",
    ),
    *(
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"Host: evil.example\r\n",
    ),
    *(
        b"Expect: 100-continue\r\n",
        b"Connection: upgrade\r\nUpgrade: websocket\r\n",
        b"Content-Encoding: gzip\r\n",
        b"Authorization: Bearer x\r\n",
    ),
    *(
        b"x-request-timeout: nan\r\n",
        b"x-request-id: a\tb\r\n",
        b"HTTP/9.9",
        b"CONNECT",
        b"null",
        b"true",
        b"{}",
        b"[" * 2000,
        b"A" * 9000,
    ),
    *(
        b'"stream": 3',
        b'"messages": {}',
        b'"n": 99999',
        b'"max_tokens": null',
        b'"model": 7',
        b'"logprobs": true',
        b'"tools": [1]',
    ),
)


def _request(line: bytes, body: bytes = b"", *headers: bytes, chunked: bool = False) -> bytes:
    if chunked:
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:9], body[9:])) + b"0\r\n\r\n"
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
    head = [line + b" HTTP/1.1", b"Host: 127.0.0.1", b"Authorization: Bearer " + TOKEN.encode(), *headers]
    return b"\r\n".join([*head, *([b"Content-Type: application/json", length] if body else []), b"", b""]) + body


SEEDS = (
    *(_request(b"GET " + path) for path in (b"/healthz", b"/readyz", b"/metrics", b"/v1/models", b"/v1/models/production")),
    *(_request(b"POST /v1/chat/completions", CHAT, b"x-request-timeout: 5", chunked=chunked) for chunked in (False, True)),
    _request(b"POST /v1/completions", COMPLETION),
    _request(b"POST /v1/feedback", FEEDBACK),
    _request(b"POST /tokenize", b'{"prompt": "a"}'),
    _request(b"OPTIONS /v1/chat/completions", b"", b"Origin: http://127.0.0.1"),
    _request(b"HEAD /healthz", b"", b"Connection: close"),
)

LAST = _request(b"GET /healthz", b"", b"Connection: close")  # after it the gateway closes the connection


def mutate(request: bytes, draw: random.Random) -> bytes:
    """Return a request with a few random changes."""
    data = bytearray(request)
    for _ in range(draw.choice((0, 1, 1, 1, 2, 3, 8))):
        at = draw.randrange(len(data) + 1)
        end = min(len(data), at + draw.choice((1, 1, 2, 8, 40)))
        kind = draw.randrange(7)
        if kind == 0:
            data[at:end] = draw.randbytes(end - at)
        elif kind == 1:
            del data[at:end]
        elif kind == 2:
            data[at:at] = data[at:end] * draw.choice((1, 2, 50))
        elif kind == 3:
            data[at:at] = draw.choice(PIECES)
        elif kind == 4:
            other = draw.choice(SEEDS)
            begin = draw.randrange(len(other))
            data[at:end] = other[begin : begin + draw.randrange(1, 60)]
        elif kind == 5 and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 6 and draw.random() < 0.2:
            del data[at:]
    return bytes(data)


async def fuzz(port: int, count: int, *, seed: int, at_once: int) -> Counter[int]:
    """Send so many fuzzed requests; return how many answers had which status. Raises AssertionError for one of 500."""
    statuses, left = Counter[int](), count

    async def worker(number: int) -> None:
        nonlocal left
        draw = random.Random(f"{seed} {number}")
        while left > 0:
            requests = [mutate(draw.choice(SEEDS), draw) for _ in range(draw.randint(1, MOST_ON_ONE_CONNECTION))]
            left -= len(requests)
            answers = b""
            with suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                with suppress(OSError):
                    for request in (*requests, LAST):  # whole, or in two parts
                        cut = draw.choice((len(request), draw.randrange(len(request) + 1)))
                        writer.write(request[:cut])
                        await writer.drain()
                        writer.write(request[cut:])
                with suppress(OSError, TimeoutError):  # a request that is cut swallows the last one, and is left
                    async with asyncio.timeout(ANSWER_SECONDS if draw.random() < 0.9 else 0.01):
                        while data := await reader.read(2**16):
                            answers += data
                writer.transport.abort()
            received = [int(status) for status in STATUS.findall(answers)]
            statuses.update(received)
            assert 500 not in received, (requests, answers)

    await asyncio.gather(*(worker(number) for number in range(at_once)))
    return statuses


def schemathesis(url: str, cases: int, folder: Path) -> str:
    """Run schemathesis; return its summary. Raises AssertionError if a case fails."""
    command = [str(conformance_tools() / "schemathesis"), "run", str(DESCRIPTION), "--url", url, "--checks", "not_a_server_error"]
    command += ["--max-examples", str(-(-cases // OPERATIONS)), "--phases", "coverage,fuzzing", "--request-timeout", "60"]
    # a client may ask for a deadline that has passed at once, and is answered 504
    (folder / "schemathesis.toml").write_text('[checks.not_a_server_error]\nexpected-statuses = ["2xx", "4xx", "504"]\n')
    done = subprocess.run([*command, "--no-color"], capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout[done.stdout.rindex("SUMMARY") :]


@contextmanager
def fuzzed(folder: Path, **settings: Any) -> Iterator[Endpoint]:
    """Yield an endpoint; raise AssertionError at the end if it has crashed or logged a traceback."""
    engine = FakeEngine("--most", "16", slots=32)
    endpoint = Endpoint(folder, [engine], feedback_folder=folder / "feedback", capture={}, idle_seconds=5.0, **settings)
    try:
        live = endpoint.live()
        yield endpoint
        assert endpoint.live() == live, "the gateway has crashed"
        at = endpoint.log().find("Traceback")
        assert at < 0, endpoint.log()[max(0, at - 500) : at + 3000]
    finally:
        endpoint.close()


def main() -> None:
    """Fuzz a gateway in front of a stub engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=48)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        for name, settings in (("with a token", WITH_TOKEN), ("open", {})):
            with fuzzed(folder / name, **settings) as endpoint:
                began = time.monotonic()
                statuses = asyncio.run(fuzz(endpoint.port, options.requests // 2, seed=options.seed, at_once=options.at_once))
                seconds = time.monotonic() - began
                print(
                    f"{options.requests // 2} fuzzed requests, {name}, in {seconds:.0f} s: {dict(sorted(statuses.items()))}",
                    flush=True,
                )
        if options.cases:
            with fuzzed(folder / "schemathesis") as endpoint:
                print(schemathesis(endpoint.url, options.cases, folder))
    print("no 500, no traceback, no crash")


if __name__ == "__main__":
    main()

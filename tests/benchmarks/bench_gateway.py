"""Cost of the gateway, what unwelcome clients and killed processes cost others, and open connections.

python -m tests.benchmarks.bench_gateway [--rows first_token,unwelcome,gateway_kills,replica_kills,connections]
    [--requests 200] [--rate 10] [--turns 2] [--router PYTHON_with_vllm_router] [--ray] [--engine fake|transformers|llamacpp]

Load is open: requests come at random moments at a rate of their own. The engine is a stub of 2 ms a token unless `--engine` says
otherwise. Peers stand before the same engine in the same run, in turns: the bare engine, `vllm-router` (`python -m venv DIR &&
DIR/bin/pip install vllm-router`), Ray Serve with HAProxy and direct streaming.

first_token     first token of the same requests, bare and behind each router
unwelcome       100 clients without a token, niced, that send 30 MB each, a byte a second, or chunks of one byte, and come back a
                second after they are refused
gateway_kills   100 requests a second, each over a connection of its own, while gateways are killed
replica_kills   streams one after the other; the replica that serves each is killed at a random token of it
connections     connections that stay open, each asked once

Measured: 2026-12-01, two cores without other work, which would count in p99 above all.
"""

import argparse
import asyncio
import contextlib
import operator
import os
import random
import re
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException

import httpx
import psutil

from tests.benchmarks.bench_serve import add_engine_options, endpoint_of, engines_of, prompts, tell
from tests.benchmarks.serve_load import Seen, ask, cpu_seconds, open_loop, open_session, percentile
from tests.benchmarks.serve_peers import ray_serve, vllm_router
from tests.jobs.serving.serve.gateway.endpoint import Endpoint, chat

ROWS = ("first_token", "unwelcome", "gateway_kills", "replica_kills", "connections")
NEW_EACH_TIME = re.compile(rb'"id": ?"[^"]*"|"created": ?[0-9]+')  # of an answer, whoever gives it
SPARE_FILES = 100  # that this process needs beside its connections
TOKEN = "a-token-of-the-benchmark"
WITH_TOKEN = {"environment": {"BENCH_TOKEN": TOKEN}, "auth": {"variable": "BENCH_TOKEN"}}
CLIENTS, KILLS, KILL_SECONDS, KILL_RATE = 100, 5, 8.0, 100.0


# --- rows


def first_token(options: argparse.Namespace) -> None:
    """One engine, bare and behind what stands before it: the same requests at the same moments."""
    engines = engines_of(options, 1, "--token", "0.002")
    bodies = prompts(options.requests, options.tokens)
    with endpoint_of(engines) as endpoint, contextlib.ExitStack() as stack:
        targets = {"bare": (f"http://127.0.0.1:{engines[0].port}", [0]), "gateway": (endpoint.url, endpoint.pids)}
        if options.router:
            targets["vllm-router"] = stack.enter_context(vllm_router(options.router, engines))
        if options.ray:
            targets["Ray Serve, HAProxy"] = stack.enter_context(ray_serve(engines))
        streams: dict[str, list[bytes]] = {}
        answers_of: dict[str, list[Seen]] = {name: [] for name in targets}
        for turn in range(options.turns):
            for name, (url, pids) in targets.items():
                asyncio.run(open_loop(url, bodies[:4], 2.0))
                before, began = cpu_seconds(pids), time.perf_counter()
                answers = asyncio.run(open_loop(url, bodies, options.rate, seed=turn))
                tell(name, answers, cpu_seconds(pids) - before if pids != [0] else None, time.perf_counter() - began)
                answers_of[name] += answers
                streams.setdefault(name, [NEW_EACH_TIME.sub(b"", answer.body) for answer in answers])
        for name, answers in answers_of.items():
            if name != "bare":
                print(f"{name}: first token over the bare engine: {_later(answers, answers_of['bare'])}")
        equal = {name: sum(map(operator.eq, stream, streams["bare"])) for name, stream in streams.items()}
        print(f"streams of {len(bodies)} equal byte by byte, but for their id and time: {equal}")


def _later(answers: list[Seen], bare: list[Seen]) -> str:
    """By how much the first tokens are later than those of the bare engine: percentiles apart, and request by request."""
    pairs = [(a.first_ms, b.first_ms) for a, b in zip(answers, bare, strict=True) if a.good and b.good]
    later = [gateway_ms - bare_ms for gateway_ms, bare_ms in pairs]
    shares = [
        f"p{100 * share:.0f} {percentile([a for a, _ in pairs], share) - percentile([b for _, b in pairs], share):+.2f} ms"
        for share in (0.5, 0.99)
    ]
    error = statistics.stdev(later) / len(later) ** 0.5
    same = f"median {statistics.median(later):+.2f}, mean {statistics.fmean(later):+.2f} ± {error:.2f} ms"
    return f"{', '.join(shares)}; the same request: {same}"


def unwelcome(options: argparse.Namespace) -> None:
    """Requests with a token, alone and beside clients without one."""
    engines = engines_of(options, 1, "--token", "0.002")
    bodies = prompts(options.requests, options.tokens)
    with endpoint_of(engines, **WITH_TOKEN) as endpoint:
        asyncio.run(open_loop(endpoint.url, bodies[:4], 2.0, token=TOKEN))
        for turn in range(options.turns):
            alone = asyncio.run(open_loop(endpoint.url, bodies, options.rate, seed=turn, token=TOKEN))
            tell("alone", alone)
            for kind in ("large", "slow", "chunks"):
                with _attack(kind, endpoint.port):
                    answers = asyncio.run(open_loop(endpoint.url, bodies, options.rate, seed=turn, token=TOKEN))
                tell(f"beside {CLIENTS} clients: {kind}", answers)
                bad = sum(not answer.good for answer in answers)
                rise = _p99(answers) - _p99(alone)
                print(f"{'':28s} {bad} failed, p99 of the first token {rise:+.1f} ms")


def _p99(answers: Sequence[Seen]) -> float:
    return percentile([answer.first_ms for answer in answers if answer.good], 0.99)


@contextlib.contextmanager
def _attack(kind: str, port: int) -> Iterator[None]:
    command = ["nice", "-n", "19", sys.executable, "-m", "tests.benchmarks.bench_gateway", "--attack", kind, "--port", str(port)]
    with subprocess.Popen(command) as process:
        try:
            time.sleep(2.0)  # it has started
            yield
        finally:
            process.terminate()


async def attack(kind: str, port: int) -> None:
    """Be a hundred clients without a token, again and again."""

    async def client() -> None:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                pieces = {"large": bytes(2**16), "slow": b"{", "chunks": b"1\r\n{\r\n" * 2**13}
                length = "Transfer-Encoding: chunked" if kind == "chunks" else f"Content-Length: {30 * 2**20}"
                writer.write(f"{head}{length}\r\n\r\n".encode())
                for _ in range(30 * 2**20 // len(pieces[kind])):
                    if writer.transport.is_closing() or reader.at_eof():
                        break
                    writer.write(pieces[kind])
                    await writer.drain()
                    await asyncio.sleep(1.0 if kind == "slow" else 0.0)
                writer.transport.abort()
            await asyncio.sleep(1.0)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))


def gateway_kills(options: argparse.Namespace) -> None:
    """Short answers, a hundred a second, each over a connection of its own, while gateways are killed."""
    draw, moments = random.Random(4), list[float]()
    engines = engines_of(argparse.Namespace(**{**vars(options), "slots": 64}), 1, "--token", "0.001")
    with endpoint_of(engines) as endpoint:
        bodies = prompts(round(KILL_RATE * KILL_SECONDS * (KILLS + 1)), 4)

        async def run() -> list[Seen]:
            asking = asyncio.create_task(open_loop(endpoint.url, bodies, KILL_RATE, fresh=True))
            for _ in range(KILLS):
                await asyncio.sleep(KILL_SECONDS * draw.uniform(0.9, 1.1))
                pid = await asyncio.to_thread(endpoint.live)
                moments.append(time.perf_counter())
                os.kill(pid, signal.SIGKILL)
            return await asking

        answers = asyncio.run(run())
    tell(f"{KILLS} gateways killed", answers)
    broken = [answer for answer in answers if any(answer.opened <= at <= answer.ended for at in moments)]
    after = [answer for answer in answers if answer not in broken]
    near = [answer for answer in after if any(0 <= answer.opened - at < KILL_SECONDS / 2 for at in moments)]
    waits = [answer.first_ms for answer in near if answer.good]
    failed = sum(not answer.good for answer in after)
    print(f"connections open at a kill: {len(broken)}, of which {sum(not answer.good for answer in broken)} failed")
    print(f"others: {len(after)}, of which {failed} failed; {len(near)} were opened within {KILL_SECONDS / 2:.0f} s after a kill")
    print(f"their longest wait for the first token: {max(waits, default=0.0):.0f} ms")


def replica_kills(options: argparse.Namespace) -> None:
    """Streams one after the other; the replica that serves each is killed at a random token of it."""
    engines = engines_of(options, 2, "--token", "0.004")
    bodies = prompts(options.requests, options.tokens)
    draw, observed_and_expected = random.Random(1), list[tuple[Seen, str]]()
    with endpoint_of(engines) as endpoint:

        async def run() -> None:
            for body in bodies:
                async with open_session(fresh=True) as session:
                    undisturbed = await ask(session, f"http://127.0.0.1:{engines[0].port}", body)
                    at = draw.randrange(1, max(2, options.tokens))
                    killed: list[int] = []

                    def kill(answer: Seen, at: int = at, killed: list[int] = killed) -> None:
                        if len(answer.times) >= at and not killed:
                            busy = [engine for engine in engines if engine.stats()["running"]]
                            if busy:
                                killed.append(1)
                                busy[0].kill()
                                answer.victim = busy[0]  # type: ignore[attr-defined]

                    observed = await ask(session, endpoint.url, body, kill)
                observed_and_expected.append((observed, undisturbed.text))
                if (victim := getattr(observed, "victim", None)) is not None:
                    victim.start(victim.port)

        asyncio.run(run())
    answers = [item for item, _ in observed_and_expected]
    equal = sum(item.text == expected for item, expected in observed_and_expected)
    hit = sum(hasattr(answer, "victim") for answer in answers)
    tell("kill -9 of the replica", answers)
    gaps = [answer.gap_seconds for answer in answers]
    print(f"killed {hit}, texts equal {equal}/{len(answers)}, gap p50 {percentile(gaps, 0.5):.3f} s, worst {max(gaps):.3f} s")


def connections(options: argparse.Namespace) -> None:
    """So many clients that stay, of several addresses, and a stream among them."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limit = options.connections + SPARE_FILES if hard == resource.RLIM_INFINITY else min(hard, options.connections + SPARE_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    with endpoint_of(engines_of(options, 1, "--token", "0.001")) as endpoint:
        before = _memory(endpoint)
        sources = [(f"127.0.{number % 4}.2", 0) for number in range(limit - SPARE_FILES)]
        clients = [HTTPConnection("127.0.0.1", endpoint.port, timeout=120, source_address=source) for source in sources]
        began, cpu = time.perf_counter(), cpu_seconds(endpoint.pids)
        for client in clients:
            client.connect()
            client.auto_open = 0  # one that is lost is not made anew
        with httpx.Client(verify=False, timeout=120) as client:
            answer = client.post(endpoint.url + "/v1/chat/completions", json=chat("among many", max_tokens=20))
        answered, spent = sum(_asks(item) for item in clients), cpu_seconds(endpoint.pids) - cpu
        print(f"a stream {answer.status_code}, {answered} of {len(clients)} connections answered", end="")
        print(f" after {time.perf_counter() - began:.1f} s, {spent:.1f} CPU s; gateways {before} MiB → {_memory(endpoint)} MiB")
        for item in clients:
            item.close()


def _memory(endpoint: Endpoint) -> int:
    return sum(psutil.Process(pid).memory_info().rss for pid in endpoint.pids) >> 20


def _asks(client: HTTPConnection) -> bool:
    try:
        client.request("GET", "/healthz")
        answer = client.getresponse()
        answer.read()
        return answer.status == HTTPStatus.OK
    except (OSError, HTTPException):
        return False


def main() -> None:
    """Measure the rows that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help="which figures, separated by commas")
    add_engine_options(parser)
    parser.add_argument("--turns", type=int, default=2, help="how often all targets are measured, one after the other")
    parser.add_argument("--connections", type=int, default=9_900, help="an endpoint takes 10,000; less if files are few")
    parser.add_argument("--router", default=None, help="a Python that has vllm-router")
    parser.add_argument("--ray", action="store_true", help="measure Ray Serve too")
    parser.add_argument("--attack", choices=["large", "slow", "chunks"], help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.attack:
        asyncio.run(attack(options.attack, options.port))
    if options.engine != "fake" and options.model is None:
        parser.error("--model is needed for a real engine")
    print(f"engine {options.engine}, {options.requests} requests of {options.tokens} tokens")
    for row in options.rows.split(","):
        print(f"-- {row}", flush=True)
        globals()[row](options)


if __name__ == "__main__":
    main()

"""Routing by prefixes, load beyond the capacity, clients that leave, and the cost of capture.

python -m tests.benchmarks.bench_serve [--rows prefixes,overload,hangups,reading,capture] [--requests 200]
    [--engine fake|transformers|llamacpp] [--model DIR] [--threads 1]

Load is open: requests come at random moments at a rate of their own. bench_gateway has the cost of the gateway itself.

Measured: Engine of 2 ms a token: 2026-11-27, a quiet machine, 10 requests of 32 tokens a second. llama.cpp: 2026-11-28,
SmolLM2-135M, one thread. A client that leaves while a prompt is read: worst of 25 185 ms, with one thread 85 ms and worst
230 ms; while an answer is drawn: worst of 50 35 ms (a fake engine: 9 ms). Beyond the capacity the rest is answered by 429.
"""

import argparse
import asyncio
import contextlib
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from ropewalk.jobs.serving.serve.routes import Replica
from tests.benchmarks.serve_load import Seen, ask, open_loop, open_session, percentile
from tests.jobs.serving.serve.gateway.endpoint import VERSION, Endpoint, FakeEngine, chat

ROWS = ("prefixes", "overload", "hangups", "reading", "capture")


class RealEngine:
    """An engine of this program, which can be killed and started again."""

    def __init__(self, name: str, model: Path, *, slots: int, threads: int) -> None:
        self.engine, self.slots, self.threads, self._model, self.generation = name, slots, threads, model, 0
        self.start(0)

    def start(self, port: int) -> None:
        from ropewalk.jobs.inference.engines.engine import EngineOptions
        from ropewalk.jobs.inference.engines.find import find_engine
        from ropewalk.jobs.inference.engines.process import EngineProcess

        options = EngineOptions(port=port, slots=self.slots, threads=self.threads, context=4096, name=VERSION)
        log = Path(tempfile.mkstemp(suffix=".log")[1])
        self._process = EngineProcess.start(find_engine(self.engine), self._model, options, log=log)
        self._process.await_ready(300)
        self.port = int(self._process.url.rpartition(":")[2])
        self.generation += 1

    @property
    def pid(self) -> int:
        return int(self._process.process.pid)

    @property
    def replica(self) -> Replica:
        return Replica(id=f"r{self.port}", url=f"http://127.0.0.1:{self.port}", engine=self.engine, slots=self.slots)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, 9)
        self._process.stop()

    def stats(self) -> dict[str, Any]:
        answer: dict[str, Any] = httpx.get(f"http://127.0.0.1:{self.port}/health").json()
        return answer


def engines_of(options: argparse.Namespace, count: int, *arguments: str) -> list[Any]:
    """So many engines of the kind that is measured."""
    if options.engine == "fake":
        return [FakeEngine(*arguments, slots=options.slots) for _ in range(count)]
    return [RealEngine(options.engine, options.model, slots=options.slots, threads=options.threads) for _ in range(count)]


@contextlib.contextmanager
def endpoint_of(engines: list[Any], **settings: Any) -> Iterator[Endpoint]:
    """A gateway before engines."""
    with tempfile.TemporaryDirectory() as folder:
        endpoint = Endpoint(Path(folder), engines, **settings)
        try:
            httpx.get(endpoint.url + "/healthz", timeout=120)  # its first gateway has started then
            yield endpoint
        finally:
            endpoint.close()


def tell(what: str, answers: list[Seen], cpu: float | None = None, seconds: float | None = None) -> None:
    """One line of figures."""
    good = [answer for answer in answers if answer.good]
    first = [answer.first_ms for answer in good]
    line = f"{what:28s} {len(good):4d}/{len(answers)} answered; first token"
    line += f" p50 {percentile(first, 0.5):7.1f} ms, p99 {percentile(first, 0.99):7.1f} ms"
    if seconds:
        line += f"; {len(good) / seconds:6.1f} answers/s"
    if cpu is not None:
        line += f"; {1000 * cpu / max(1, len(answers)):6.2f} CPU ms a request"
    print(line, flush=True)


def prompts(count: int, tokens: int, tag: str = "") -> list[dict[str, Any]]:
    """Greedy requests, each with another prompt."""
    return [chat(f"{tag} Write about the number {k}.", max_tokens=tokens) for k in range(count)]


# --- rows


def prefixes(options: argparse.Namespace) -> None:
    """Two replicas, twenty shared beginnings of 512 tokens: routed by them, and without."""
    draw = random.Random(2)
    vocabulary = [f"{draw.choice('bcdfghklmnprst')}{draw.choice('aeiou')}{draw.choice('lmnrst')}" for _ in range(5000)]
    shared = [" ".join(draw.choice(vocabulary) for _ in range(300)) for _ in range(20)]
    bodies = [chat(f"{draw.choice(shared)} Question {k}?", max_tokens=4) for k in range(options.requests)]
    results: dict[str, float] = {}
    for name in ("by prefixes", "least loaded", "at random"):
        engines = engines_of(options, 2, "--prefill", "0.05")
        with endpoint_of(engines, **({} if name == "by prefixes" else {"prefix_block": 2**20})) as endpoint:
            engine_urls = [f"http://127.0.0.1:{engine.port}" for engine in engines]
            answers = asyncio.run(open_loop(engine_urls if name == "at random" else endpoint.url, bodies, options.rate))
        tell(name, answers)
        results[name] = percentile([answer.first_ms for answer in answers if answer.good], 0.5)
    for other in ("least loaded", "at random"):
        print(f"first token p50 by prefixes over {other}: {results['by prefixes'] / results[other]:.2f}")


def overload(options: argparse.Namespace) -> None:
    """Send requests at the capacity, then at three times the capacity."""
    engines = engines_of(options, 1, "--token", "0.005")
    with endpoint_of(engines) as endpoint:
        began = time.perf_counter()
        closed = asyncio.run(_closed_loop(endpoint.url, prompts(options.requests, options.tokens, "closed"), options.slots))
        peak = len(closed) / (time.perf_counter() - began)
        tell("peak, as many as slots", closed, seconds=time.perf_counter() - began)
        began = time.perf_counter()
        answers = asyncio.run(open_loop(endpoint.url, prompts(3 * options.requests, options.tokens, "open"), 3 * peak))
        spent = time.perf_counter() - began
        tell("three times as many", answers, seconds=spent)
        good = [answer for answer in answers if answer.good]
        statuses = {
            status: sum(answer.status == status for answer in answers) for status in {answer.status for answer in answers}
        }
        print(f"goodput over peak: {len(good) / spent / peak:.2f}; statuses {statuses}")


async def _closed_loop(url: str, bodies: list[dict[str, Any]], at_once: int) -> list[Seen]:
    slots = asyncio.Semaphore(at_once)

    async def one(body: dict[str, Any]) -> Seen:
        async with slots:
            return await ask(session, url, body)

    async with open_session() as session:
        return await asyncio.gather(*(one(body) for body in bodies))


def reading(options: argparse.Namespace) -> None:
    """Clients that leave while their prompt is read, of one slot: how much later the next one has its first token than behind
    a client who has had its answer."""
    engines = engines_of(argparse.Namespace(**{**vars(options), "slots": 1}), 1, "--prefill", "0.05")
    draw, spent = random.Random(3), list[float]()
    vocabulary = [f"{draw.choice('bcdfghklmnprst')}{draw.choice('aeiou')}{draw.choice('lmnrst')}" for _ in range(5000)]
    with endpoint_of(engines) as endpoint:
        url = endpoint.url + "/v1/chat/completions"
        for number in range(min(25, options.requests)):
            seconds = []
            for count, patience in ((20, 120.0), (900, draw.uniform(0.2, 1.0))):  # the second leaves in the middle of its prompt
                prompt = chat(" ".join(draw.choice(vocabulary) for _ in range(count)), max_tokens=2)
                with contextlib.suppress(httpx.ReadTimeout):
                    httpx.post(url, json=prompt, timeout=patience, verify=False)
                seconds.append(_first_token(url, chat(f"next {number} {count}", max_tokens=1)))
            spent.append(seconds[1] - seconds[0])
    worst = f"p50 {1000 * percentile(spent, 0.5):.0f} ms, worst {1000 * max(spent):.0f} ms of {len(spent)}"
    print(f"a prompt is read and its client leaves, the next one waits longer by: {worst}")


def _first_token(url: str, body: dict[str, Any]) -> float:
    began = time.perf_counter()
    with httpx.Client(verify=False, timeout=120) as client, client.stream("POST", url, json=body) as stream:
        parts = stream.iter_raw()
        next(parts)
        return time.perf_counter() - began


def hangups(options: argparse.Namespace) -> None:
    """Clients that leave: how long until the engine's slot is free."""
    engines = engines_of(options, 1, "--token", "0.005")
    spent: list[float] = []
    with endpoint_of(engines) as endpoint:
        for number in range(min(50, options.requests)):
            with (
                httpx.Client(verify=False) as client,
                client.stream(
                    "POST", endpoint.url + "/v1/chat/completions", json=chat(f"leaves {number}", max_tokens=2000)
                ) as stream,
            ):
                parts = stream.iter_raw()
                next(parts)
            began = time.perf_counter()
            while engines[0].stats()["running"]:
                time.sleep(0.002)
            spent.append(time.perf_counter() - began)
    print(f"hang-up to a free slot: p50 {1000 * percentile(spent, 0.5):.0f} ms, worst {1000 * max(spent):.0f} ms of {len(spent)}")


def capture(options: argparse.Namespace) -> None:
    """Fill all slots of the engine, in turns with and without capturing and masking every exchange."""
    engines, rates = engines_of(options, 1, "--token", "0.005"), dict[str, list[float]]()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        capturing = {"capture": {"retention_days": 1}, "feedback_folder": Path(folder)}
        ends = {name: stack.enter_context(endpoint_of(engines, **more)) for name, more in (("without", {}), ("with", capturing))}
        for turn in range(2 * options.turns):
            for name, end in ends.items():
                bodies = prompts(options.requests, options.tokens, f"{name} {turn}: mail me at someone@example.org.")
                began = time.perf_counter()
                answers = asyncio.run(_closed_loop(end.url, bodies, options.slots))
                rates.setdefault(name, []).append(sum(answer.good for answer in answers) / (time.perf_counter() - began))
    shares = [with_it / without for with_it, without in zip(rates["with"], rates["without"], strict=True)]
    mean, error = statistics.fmean(shares), statistics.stdev(shares) / len(shares) ** 0.5
    print(f"answers a second with capture over without: {mean:.3f} ± {error:.3f}; {rates}")


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the engine and of the load."""
    parser.add_argument("--engine", default="fake", choices=["fake", "transformers", "llamacpp"])
    parser.add_argument("--model", type=Path, default=None, help="a Hugging Face directory, for real engines")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--rate", type=float, default=10.0, help="requests a second")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1, help="of a real engine")


def main() -> None:
    """Measure the rows that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help="which figures, separated by commas")
    add_engine_options(parser)
    parser.add_argument("--turns", type=int, default=2, help="how often all targets are measured, one after the other")
    options = parser.parse_args()
    if options.engine != "fake" and options.model is None:
        parser.error("--model is needed for a real engine")
    print(f"engine {options.engine}, {options.requests} requests of {options.tokens} tokens, version {VERSION}")
    for row in options.rows.split(","):
        print(f"-- {row}")
        globals()[row](options)


if __name__ == "__main__":
    main()

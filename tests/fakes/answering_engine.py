"""An engine whose every token is a hash of all tokens before it: whoever continues it wrongly gets another text.

python -m tests.fakes.answering_engine PORT [--slots 4] [--prefill 0.001] [--token 0.002] [--way continue_from]

A prompt's tokens are its bytes. `prefill` is seconds for each KiB of a prompt that is not in the cache, `token` seconds for each
token; no answer is longer than `--most` tokens. `--way` says how much it can of continuation: continue_from, token_ids or replay.
A prompt with POISON in it kills it. Each line of the file `--hold` is a number of tokens after which an answer stands still; the
line is taken out when one does.
"""

import argparse
import asyncio
import hashlib
import json
import os
import signal
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

_FIRST_ID = 1000
_CACHED = 12


class Engine:
    """Abilities and counters of the engine."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.slots = asyncio.Semaphore(options.slots)
        self.running = self.served = self.cancelled = self.prefilled_bytes = 0
        self.cache: OrderedDict[bytes, None] = OrderedDict()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        method, path, *_ = head.split()
        lengths = [line.partition(":")[2] for line in head.lower().split("\r\n") if line.startswith("content-length:")]
        body = await reader.readexactly(int(lengths[0]) if lengths else 0)
        if method == "GET":
            stats = {
                "running": self.running,
                "served": self.served,
                "cancelled": self.cancelled,
                "prefilled": self.prefilled_bytes,
            }
            _whole(writer, 200, {"status": "ok", **stats})
            return True
        if not path.endswith("completions"):  # routers try what an engine may have
            _whole(writer, 404, {"error": {"message": "no such path", "type": "not_found_error", "param": None, "code": None}})
            return True
        request = json.loads(body)
        gone = asyncio.create_task(reader.read(1))  # a client says nothing while it waits: this is its end
        answering = asyncio.create_task(self._answer(path, request, writer))
        await asyncio.wait([gone, answering], return_when=asyncio.FIRST_COMPLETED)
        gone.done() and gone.exception()  # seen: a reset is an end like any other
        if not answering.done():
            self.cancelled += 1
            answering.cancel()
            return False
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        await answering
        return True

    async def _answer(self, path: str, requested: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if self.options.status != 200:
            error = {"message": "as it was told", "type": "server_error", "param": None, "code": "told"}
            _whole(writer, self.options.status, {"error": error})
            return
        async with self.slots:
            self.running += 1
            try:
                try:
                    answer = Answer(self, path, requested, writer)
                except (KeyError, TypeError, ValueError, AttributeError) as error:
                    refusal = {"message": repr(error), "type": "invalid_request_error", "param": None, "code": "invalid"}
                    _whole(writer, 400, {"error": refusal})
                    return
                await answer.run()
                self.served += 1
            finally:
                self.running -= 1

    async def prefill(self, prompt: bytes) -> None:
        """Take the time that a prompt takes, less what the cache has of its beginning."""
        shared = max((_shared(prompt, item) for item in self.cache), default=0)
        self.cache[prompt] = None
        self.cache.move_to_end(prompt)
        while len(self.cache) > _CACHED:
            self.cache.popitem(last=False)
        self.prefilled_bytes += len(prompt) - shared
        await asyncio.sleep(self.options.prefill * (len(prompt) - shared) / 1024)


class Answer:
    """One request."""

    def __init__(self, engine: Engine, path: str, requested: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        self.engine, self.asked, self.writer = engine, requested, writer
        self.chat = path.endswith("/chat/completions")
        self.way = engine.options.way
        prompt = requested["messages"] if self.chat else requested["prompt"]
        text = json.dumps(prompt) if not isinstance(prompt, str) else prompt
        is_ids = isinstance(prompt, list) and all(isinstance(token, int) for token in prompt)
        self.context: list[int] = list(prompt) if is_ids else list(text.encode())
        if "POISON" in text:
            os.kill(os.getpid(), signal.SIGKILL)
        self.num_prompt = len(self.context)
        self.limit = min(int(requested.get("max_completion_tokens") or requested.get("max_tokens") or 16), engine.options.most)
        number = hashlib.sha1(str(self.context).encode()).hexdigest()[:12]
        self.id, self.created, self.made = f"chatcmpl-{number}{os.getpid()}", os.getpid(), 0
        self.tells_ids = bool(requested.get("return_token_ids")) and self.way != "replay"
        self.seed = requested.get("seed") if requested.get("temperature", 1) != 0 else None

    async def run(self) -> None:
        request, continuation = self.asked, self.asked.get("continue_from")
        started = False
        if continuation is not None:
            if self.way != "continue_from":
                error = {"message": "no", "type": "invalid_request_error", "param": None, "code": "cannot_continue"}
                _whole(self.writer, 400, {"error": error})
                return
            self.id, self.created, started = continuation["id"], continuation["created"], continuation["started"]
            self.context += continuation["token_ids"]
            self.made = len(continuation["token_ids"])
        await self.engine.prefill(bytes(token % 256 for token in self.context))
        if not request.get("stream"):
            pieces = []
            while self.made < self.limit:
                await asyncio.sleep(self.engine.options.token)
                pieces.append(self._next()[1])
                await self._hold()
            choice = {"index": 0, "finish_reason": "length"}
            text = "".join(pieces)
            choice |= {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
            _whole(self.writer, 200, {"id": self.id, "created": self.created, "choices": [choice], "usage": self._usage()})
            return
        self.writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        if self.chat and not started:
            self._event([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}], prompt=True)
        await self._stream()

    async def _stream(self) -> None:
        while self.made < self.limit:
            await asyncio.sleep(self.engine.options.token)
            token, text = self._next()
            part: dict[str, Any] = {"delta": {"content": text}} if self.chat else {"text": text}
            choice = {"index": 0, **part, "finish_reason": None}
            if self.tells_ids:
                choice["token_ids"] = [token]
            self._event([choice], prompt=not self.chat and self.made == 1)
            await self.writer.drain()
            await self._hold()
        self._event([{"index": 0, **({"delta": {}} if self.chat else {"text": ""}), "finish_reason": "length"}])
        if (self.asked.get("stream_options") or {}).get("include_usage"):
            self._event([], usage=self._usage())
        _chunk(self.writer, b"data: [DONE]\n\n")
        self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()

    def _next(self) -> tuple[int, str]:
        token, text = draw(self.context, self.seed)
        self.context.append(token)
        self.made += 1
        return token, text

    async def _hold(self) -> None:
        file = self.engine.options.hold
        if file is None or not file.exists():
            return
        lines, at = file.read_text().split(), str(sum(token >= _FIRST_ID for token in self.context))
        if at in lines:
            lines.remove(at)
            file.write_text("\n".join(lines))
            await asyncio.Event().wait()

    def _usage(self) -> dict[str, int]:
        prompt = self.num_prompt
        return {"prompt_tokens": prompt, "completion_tokens": self.made, "total_tokens": prompt + self.made}

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None, *, prompt: bool = False) -> None:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        report = {"id": self.id, "object": kind, "created": self.created, "model": self.asked.get("model"), "choices": choices}
        if usage is not None:
            report["usage"] = usage
        if prompt and self.tells_ids:
            report["prompt_token_ids"] = self.context[: self.num_prompt]
        _chunk(self.writer, b"data: " + json.dumps(report, separators=(",", ":")).encode() + b"\n\n")


def draw(context: list[int], seed: int | None) -> tuple[int, str]:
    """Return the token after a context, and its text."""
    drawn = hashlib.sha1(f"{context}{seed}".encode()).digest()
    token = _FIRST_ID + int.from_bytes(drawn[:4], "big") % 5000
    return token, f" w{token}é"


def greedy_text(prompt: str, num_tokens: int) -> str:
    """Return the whole greedy answer to a prompt; that of a conversation is its messages as JSON."""
    context, pieces = list(prompt.encode()), list[str]()
    for _ in range(num_tokens):
        token, text = draw(context, None)
        context.append(token)
        pieces.append(text)
    return "".join(pieces)


def _shared(token: bytes, other: bytes) -> int:
    return next((at for at, (a, b) in enumerate(zip(token, other, strict=False)) if a != b), min(len(token), len(other)))


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


def _whole(writer: asyncio.StreamWriter, status: int, value: dict[str, Any]) -> None:
    body = json.dumps(value).encode()
    writer.write(b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))


async def main(options: argparse.Namespace) -> None:
    """Serve until killed."""
    server = await asyncio.start_server(Engine(options).serve, "127.0.0.1", options.port, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def parser() -> argparse.ArgumentParser:
    """Parser of the command line."""
    argument_parser = argparse.ArgumentParser()
    argument_parser.add_argument("port", type=int)
    argument_parser.add_argument("--slots", type=int, default=4)
    argument_parser.add_argument("--prefill", type=float, default=0.0)
    argument_parser.add_argument("--token", type=float, default=0.0)
    argument_parser.add_argument("--most", type=int, default=2**31)
    argument_parser.add_argument("--hold", type=Path, default=None)
    argument_parser.add_argument("--status", type=int, default=200)
    argument_parser.add_argument("--way", choices=["continue_from", "token_ids", "replay"], default="continue_from")
    return argument_parser


if __name__ == "__main__":
    sys.exit(asyncio.run(main(parser().parse_args())))  # type: ignore[func-returns-value]

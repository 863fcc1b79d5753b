"""An engine that is up in no time: OpenAI's API over words that follow from the prompt, for what is tested around engines.

Usage: python tests/fakes/engine.py MODEL_DIR --host H --port P [--token-file FILE]
The model's directory has a file `engine.json`: {words, pause, load, answer}; `load` is the error of a model that does not load,
`answer` that of one that loads and cannot answer, `hang` one that never listens, `pause` the seconds before each word.
"""

import argparse
import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar


def fake_model(folder: Path, **keys: Any) -> Path:
    """A directory that this engine serves."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(json.dumps(keys).encode())
    (folder / "engine.json").write_text(json.dumps(keys))
    return folder


class Handler(BaseHTTPRequestHandler):
    """Answers with `words` words, each of which names the model and its place."""

    protocol_version = "HTTP/1.1"
    keys: ClassVar[dict[str, Any]] = {}
    running = 0
    token = ""

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Health."""
        self._send(200, {"status": "ok", "running": Handler.running, "waiting": 0})

    def do_POST(self) -> None:
        """A completion, at once or word by word."""
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        if self.token and self.headers.get("Authorization") != f"Bearer {self.token}":
            return self._send(401, {"error": {"message": "the token is missing or wrong", "type": "authentication_error"}})
        if self.keys.get("answer"):
            return self._send(500, {"error": {"message": self.keys["answer"], "type": "server_error"}})
        Handler.running += 1
        try:
            return self._answer(body)
        finally:
            Handler.running -= 1

    def _answer(self, body: dict[str, Any]) -> None:
        chat = self.path.endswith("/chat/completions")
        if not self.path.endswith("/completions"):
            return self._send(404, {"error": {"message": "no such path", "type": "invalid_request_error"}})
        name = self.keys.get("says", "word")
        line = [f"{name}{number} " for number in range(int(self.keys.get("words", 4)))]
        about = {
            "id": "cmpl-1",
            "created": 1,
            "model": body.get("model"),
            "object": "chat.completion" if chat else "text_completion",
        }
        pause = float(self.keys.get("pause", 0))
        if not body.get("stream"):
            time.sleep(pause * len(line))
            text = "".join(line)
            message = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            usage = {"prompt_tokens": 1, "completion_tokens": len(line), "total_tokens": 1 + len(line)}
            return self._send(200, {**about, "choices": [{"index": 0, "finish_reason": "stop", **message}], "usage": usage})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number, word in enumerate(line):
            time.sleep(pause)
            message = {"delta": {"content": word}} if chat else {"text": word}
            last = number == len(line) - 1
            choice = {"index": 0, "finish_reason": "stop" if last else None, "token_ids": [number], **message}
            self._chunk(f"data: {json.dumps({**about, 'choices': [choice]})}\n\n")
        self._chunk("data: [DONE]\n\n")
        return self._chunk("")

    def _chunk(self, text: str) -> None:
        raw = text.encode()
        self.wfile.write(f"{len(raw):x}\r\n".encode() + raw + b"\r\n")

    def _send(self, status: int, value: Any) -> None:
        raw = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


class Server(ThreadingHTTPServer):
    """Many clients at once."""

    daemon_threads = True
    request_queue_size = 1024


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--token-file", type=Path)
    options = parser.parse_args()
    Handler.token = options.token_file.read_text() if options.token_file else ""
    Handler.keys = json.loads((options.model / "engine.json").read_text())
    if Handler.keys.get("load"):
        sys.exit(f"cannot load {options.model}: {Handler.keys['load']}")
    while Handler.keys.get("hang"):
        time.sleep(1)
    Server((options.host, options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()

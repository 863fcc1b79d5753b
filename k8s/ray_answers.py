"""What the head of a RayJob answers KubeRay: the part of Ray's job API that asks how a job is.

Not Ray's own job server: that one runs whatever is posted to it, needs a second installation of Ray (`ray[default]`) and half a
dozen processes more, and kills the job with SIGKILL when its pod has to go. Here the head carries the run already, and nothing
that is posted starts anything. So KubeRay's HTTPMode fits: there is no pod of a submitter to be lost, a new head answers for
the same run, and a suspended RayJob goes on where its run directory says. The token is that which KubeRay has made for Ray.
"""

import hmac
import json
import logging
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

log = logging.getLogger(__name__)

PATH = "/api/jobs/"
HEADERS = ("x-ray-authorization", "authorization")  # KubeRay's, and that of Ray's own clients
REQUEST_SECONDS = 5.0
LONGEST_BODY = 64 * 1024
RUNNING, SUCCEEDED, FAILED, STOPPED = "RUNNING", "SUCCEEDED", "FAILED", "STOPPED"  # Ray's words


class Answers:
    """Tells KubeRay that the job runs, until `conclude` tells otherwise."""

    def __init__(self, address: str, port: int, token: str, entrypoint: str) -> None:
        self._token = token.encode()
        self._job: dict[str, Any] = {"type": "SUBMISSION", "entrypoint": entrypoint, "status": RUNNING, "message": ""}
        self._job["start_time"] = _now_ms()
        self._server = _Server((address, port), _handler(self))
        threading.Thread(target=self._server.serve_forever, name="answers", daemon=True).start()

    def conclude(self, status: str, message: str) -> None:
        """The job is over; KubeRay takes the pods away as soon as it has asked."""
        self._job |= {"status": status, "message": message, "end_time": _now_ms()}

    def close(self) -> None:
        """Answer nobody any more."""
        self._server.shutdown()
        self._server.server_close()

    def admits(self, header: str) -> bool:
        """Whether the caller knows the token; nobody does where there is none."""
        return bool(self._token) and hmac.compare_digest(header.removeprefix("Bearer ").encode(), self._token)

    def answer(self, method: str, path: str) -> tuple[int, Any]:
        """Status and body. The job has whatever id it is asked for by: KubeRay makes a new one for each cluster."""
        name, _, verb = path.removeprefix(PATH).partition("/")
        if not path.startswith(PATH) or (verb and (method, verb) != ("POST", "stop")):
            return 404, {"error": f"there is no {path} here"}
        if verb:
            return 200, {"stopped": True}  # it asks before it deletes the pods, who learn of that by a signal
        job = {**self._job, "submission_id": name}
        if method == "GET":
            return 200, job if name else [job]
        return (200, {"job_id": name, "submission_id": name}) if method == "POST" else (404, {"error": method})


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)


def _handler(answers: Answers) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_SECONDS

        def do_GET(self) -> None:
            self._respond()

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length") or "0"
            if self._admitted() and length.isdecimal():  # else what follows is not read, and the connection ends
                self.rfile.read(min(int(length), LONGEST_BODY))
            self._respond()

        def _admitted(self) -> bool:
            return any(answers.admits(self.headers.get(name) or "") for name in HEADERS)

        def _respond(self) -> None:
            if self._admitted():
                status, body = answers.answer(self.command, self.path.partition("?")[0])
            else:
                status, body = 401, {"error": "the token of this Ray cluster is needed"}
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *words: Any) -> None:  # noqa: A002 - its name in the base class
            log.debug(format, *words)

    return Handler


def _now_ms() -> int:
    return int(time.time() * 1000)

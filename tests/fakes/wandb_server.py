"""A server that wandb-core takes for W&B: it records runs, history, summaries, artifacts and alerts, and can fail in every way.

As much of W&B's protocol as a run needs, seen from what wandb-core 0.31 sends. History is what the file stream puts at an offset.
"""

import gzip
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import unquote

HISTORY, SUMMARY = "wandb-history.jsonl", "wandb-summary.json"
ENTITY = "me"


@dataclass
class ServedRun:
    """A run as the server knows it."""

    name: str
    project: str
    fields: dict[str, Any] = field(default_factory=dict)  # the last that UpsertBucket said
    config: dict[str, Any] = field(default_factory=dict)
    lines: dict[int, dict[str, Any]] = field(default_factory=dict)  # history by offset
    rewritten: int = 0  # lines that came again with other content
    summary: dict[str, Any] = field(default_factory=dict)
    alerts: list[dict[str, Any]] = field(default_factory=list)
    used: list[str] = field(default_factory=list)  # artifacts, by id
    artifacts_made: list[str] = field(default_factory=list)
    exit_code: int | None = None
    preempting: bool = False

    @property
    def history(self) -> list[dict[str, Any]]:
        """The history's lines in order; fails on a gap."""
        assert sorted(self.lines) == list(range(len(self.lines))), "a gap in the history"
        return [self.lines[number] for number in range(len(self.lines))]


@dataclass
class WandbServer:
    """The server, by what it has recorded and how it fails."""

    port: int = 0
    runs: dict[str, ServedRun] = field(default_factory=dict)
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)
    failing: int = 0  # answer everything with this status: 401, 429, 500
    cut: int = 0  # so many requests are cut off after they were carried out
    requests: int = 0
    files: dict[str, bytes] = field(default_factory=dict)  # that were uploaded, by RUN/NAME or ARTIFACT/NAME
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def address(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self.port}"

    def run(self, name: str, project: str = "") -> ServedRun:
        """The run of this name, made if there is none."""
        return self.runs.setdefault(name, ServedRun(name, project))

    # --- GraphQL, by the name of the operation

    def answer(self, operation: str, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data of a GraphQL request."""
        for word, handler in self._handlers.items():
            if f"{word}(" in query or f"{word} (" in query or operation == word:
                return handler(self, variables)
        return {"viewer": {"id": "u", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}", "teams": {"edges": []}}}

    def _resume_status(self, variables: dict[str, Any]) -> dict[str, Any]:
        project = {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": ENTITY}}
        result = self.runs.get(variables["name"])
        if result is None:
            return {"model": {**project, "bucket": None}}
        last = result.lines.get(len(result.lines) - 1)
        bucket = {
            "id": result.name, "name": result.name, "displayName": result.name, "summaryMetrics": json.dumps(result.summary),
            "logLineCount": 0, "historyLineCount": len(result.lines), "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(last)] if last else []), "eventsTail": "[]",
            "config": json.dumps(result.config), "tags": result.fields.get("tags") or [], "notes": result.fields.get("notes"),
            "wandbConfig": json.dumps({"t": {}}),
        }  # fmt: skip
        return {"model": {**project, "bucket": bucket}}

    def _upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        inserted = variables["name"] not in self.runs
        result = self.run(variables["name"], variables.get("project") or "")
        result.fields.update({key: value for key, value in variables.items() if value is not None})
        result.config.update(json.loads(variables.get("config") or "{}"))
        if variables.get("state") == "preempting":
            result.preempting = True
        project = {"id": "p", "name": result.project, "entity": {"id": "e", "name": ENTITY}}
        bucket = {
            "id": result.name, "name": result.name, "displayName": result.name, "description": None, "sweepName": None,
            "config": json.dumps(result.config), "project": project, "historyLineCount": len(result.lines),
        }  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _alert(self, variables: dict[str, Any]) -> dict[str, Any]:
        self.run(variables.get("runName") or variables.get("run_name") or "").alerts.append(variables)
        return {"notifyScriptableRunAlert": {"success": True}}

    def _create_artifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        variables = variables.get("input", variables)
        name = variables["artifactCollectionName"]
        key = f"{name}:{variables['digest']}"
        existing = key in self.artifacts
        created = self.artifacts.setdefault(
            key, {"id": key, "name": name, "type": variables.get("artifactTypeName"), "aliases": []}
        )
        aliases = variables.get("aliases") or []
        created["aliases"] += [alias["alias"] for alias in aliases if alias["alias"] not in created["aliases"]]
        created["metadata"] = json.loads(variables.get("metadata") or "{}")
        if variables.get("runName"):
            self.run(variables["runName"]).artifacts_made.append(key)
        sequence = {"id": name, "name": name, "latestArtifact": {"id": key, "versionIndex": 0}}
        state = "COMMITTED" if existing else "PENDING"
        return {"createArtifact": {"artifact": {"id": key, "state": state, "artifactSequence": sequence}}}

    def _artifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        result = self.artifacts[variables["id"]]
        project = {"id": "p", "internalId": "p", "name": "ropewalk", "entity": {"name": ENTITY}}
        sequence = {"__typename": "ArtifactSequence", "name": result["name"], "project": project}
        return {
            "artifact": {
                "__typename": "Artifact", "id": variables["id"], "artifactSequence": sequence, "versionIndex": 0,
                "artifactType": {"name": result["type"]}, "description": None, "metadata": json.dumps(result["metadata"]),
                "ttlDurationSeconds": 0, "ttlIsInherited": False, "tags": [], "historyStep": None, "state": "COMMITTED",
                "size": 0,
                "digest": variables["id"].split(":")[1], "commitHash": None, "fileCount": 1, "createdAt": "2026-01-01T00:00:00",
                "updatedAt": None, "aliases": [],
            }
        }  # fmt: skip

    def _use_artifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        variables = variables.get("input", variables)
        self.run(variables["runName"]).used.append(variables["artifactID"])
        return {
            "useArtifact": {"artifact": {"id": variables["artifactID"], "digest": "", "description": None, "state": "COMMITTED"}}
        }

    def _manifest(self, variables: dict[str, Any]) -> dict[str, Any]:
        file = {"id": "f", "name": "manifest", "displayName": "m", "uploadUrl": f"{self.address}/upload", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}

    def _update_manifest(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {
            "updateArtifactManifest": {
                "artifactManifest": self._manifest(variables)["createArtifactManifest"]["artifactManifest"]
            }
        }

    def _commit(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": ""}}}

    def _files(self, variables: dict[str, Any]) -> dict[str, Any]:
        files = [
            {"name": name, "uploadUrl": f"{self.address}/upload/{variables['run']}/{name}"} for name in variables.get("files", [])
        ]
        return {"createRunFiles": {"runID": variables.get("run"), "uploadHeaders": [], "files": files}}

    def _artifact_files(self, variables: dict[str, Any]) -> dict[str, Any]:
        nodes = [
            {
                "id": file["name"], "name": file["name"], "displayName": file["name"], "uploadHeaders": [], "storagePath": "",
                "uploadUrl": f"{self.address}/upload/{file['artifactID']}/{file['name']}",
                "uploadMultipartUrls": None, "artifact": {"id": file["artifactID"]},
            }
            for file in variables.get("input", variables)["artifactFiles"]
        ]  # fmt: skip
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    _handlers: ClassVar[dict[str, Callable[[Any, dict[str, Any]], dict[str, Any]]]] = {
        "RunResumeStatus": _resume_status,
        "UpsertBucket": _upsert,
        "NotifyScriptableRunAlert": _alert,
        "CreateArtifact": _create_artifact,
        "UseArtifact": _use_artifact,
        "CreateArtifactManifest": _manifest,
        "UpdateArtifactManifest": _update_manifest,
        "CommitArtifact": _commit,
        "CreateArtifactFiles": _artifact_files,
        "CreateRunFiles": _files,
        "ArtifactByID": _artifact,
        "Lines": _resume_status,
        "ArtifactType": lambda self, expected: {"project": {"artifact": None}},
    }

    def stream(self, name: str, body: dict[str, Any]) -> None:
        """A request of a run's file stream."""
        run = self.run(name)
        for file, part in (body.get("files") or {}).items():
            if file == HISTORY:
                for number, text in enumerate(part["content"], start=part["offset"]):
                    line = json.loads(text)
                    run.rewritten += run.lines.get(number, line) != line
                    run.lines[number] = line
            elif file == SUMMARY:
                run.summary = json.loads(part["content"][-1])
        run.preempting = run.preempting or bool(body.get("preempting"))
        if body.get("complete"):
            run.exit_code = body.get("exitcode")


def _handler(server: WandbServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("content-length") or 0))
            if self.headers.get("content-encoding") == "gzip":
                raw = gzip.decompress(raw)
            if "/otel/" in self.path:
                return self._reply({})
            with server.lock:
                server.requests += 1
                if server.failing:
                    return self._reply({"error": "planted"}, server.failing)
                result = self._carry_out(json.loads(raw or b"{}"))
                if server.cut:
                    server.cut -= 1
                    self.close_connection = True
                    return None
            return self._reply(result)

        def do_PUT(self) -> None:
            raw = self.rfile.read(int(self.headers.get("content-length") or 0))
            if self.headers.get("content-encoding") == "gzip":
                raw = gzip.decompress(raw)
            server.files[unquote(self.path.removeprefix("/upload").lstrip("/"))] = raw
            self._reply({})

        def _carry_out(self, body: dict[str, Any]) -> dict[str, Any]:
            if self.path.endswith("/graphql"):
                return {"data": server.answer(body.get("operationName") or "", body["query"], body.get("variables") or {})}
            if self.path.endswith("/file_stream"):
                server.stream(self.path.split("/")[-2], body)
            return {}

        def _reply(self, value: dict[str, Any], status: int = 200) -> None:
            raw = json.dumps(value).encode()
            with suppress(ConnectionError):
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

    return Handler


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is killed cuts its connection: that is the test."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serving(server: WandbServer | None = None) -> Iterator[WandbServer]:
    """A server at a free port of the loopback, or at the port that it had before."""
    server = server or WandbServer()
    http = _Quiet(("127.0.0.1", server.port), _handler(server))
    server.port = http.server_address[1]
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()

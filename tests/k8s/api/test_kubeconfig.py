"""Kubeconfig files, contexts and exec plug-ins, against a server that notes what it is sent."""

import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from ropewalk.cluster.errors import BackendError, ConfigError
from ropewalk.k8s.api.client import ApiAwayError, ForbiddenError, Kubernetes, RefusedError
from ropewalk.k8s.api.http_transport import HttpTransport
from ropewalk.k8s.api.kubeconfig import connect
from ropewalk.k8s.profile import K8sProfile
from ropewalk.k8s.status.doctor import _server
from ropewalk.k8s.status.pending_reasons import with_remedy

ROOT = Path(__file__).resolve().parents[3]


class Server:
    """An API server of few words: it accepts one token, and notes each request's path and headers."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str | None]] = []
        self.acts_as: list[list[tuple[str, str]]] = []
        self.token: str | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                sent = self.headers.get("Authorization")
                outer.seen.append((self.path, sent))
                outer.acts_as.append([(k, v) for k, v in self.headers.items() if k.lower().startswith("impersonate")])
                refused = outer.token is not None and sent != f"Bearer {outer.token}"
                body = json.dumps({"message": "Unauthorized"} if refused else {"items": []}).encode()
                self.send_response(401 if refused else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def write(path: Path, server: str, user: dict[str, Any], context: str = "lab", **cluster: Any) -> Path:
    content = {
        "clusters": [{"name": context, "cluster": {"server": server, **cluster}}],
        "users": [{"name": context, "user": user}],
        "contexts": [{"name": context, "context": {"cluster": context, "user": context, "namespace": f"ns-{context}"}}],
        "current-context": context,
    }
    path.write_text(yaml.safe_dump(content))
    return path


def plugin(folder: Path, *tokens: str, minutes: float = 60) -> dict[str, Any]:
    """A plug-in that tells one token after the other, and notes what it was told."""
    until = (datetime.now(UTC) + timedelta(minutes=minutes)).isoformat()
    (folder / "tokens").write_text("\n".join(tokens) + "\n")
    script = folder / "login"
    script.write_text(
        f"""#!/bin/bash
cd {folder}; echo "$KUBERNETES_EXEC_INFO" >> told
token=$(head -1 tokens); sed -i 1d tokens
echo '{{"kind":"ExecCredential","status":{{"token":"'$token'","expirationTimestamp":"{until}"}}}}'
"""
    )
    script.chmod(0o755)
    return {
        "exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "./login", "args": ["x"], "provideClusterInfo": True}
    }


def test_the_context_that_the_profile_names(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write(tmp_path / "a", "http://127.0.0.1:1", {"token": "one"}, "one")
    second = write(tmp_path / "b", server.url, {"token": "two"}, "two")
    monkeypatch.setenv("KUBECONFIG", f"{first}:{second}:{tmp_path / 'missing'}")
    kube = connect(K8sProfile(context="two"))
    assert kube.list("Job") == []
    assert kube.namespace == "ns-two"
    assert server.seen == [("/apis/batch/v1/namespaces/ns-two/jobs", "Bearer two")]
    with pytest.raises(ApiAwayError, match="cannot be reached"):  # the first file's current-context wins
        connect(K8sProfile()).list("Job")
    with pytest.raises(ConfigError, match=r"context 'three': not in .*; it has one, two"):
        connect(K8sProfile(context="three"))


def test_a_plug_in_is_asked_once_and_again_when_its_token_is_refused(tmp_path: Path, server: Server) -> None:
    path = write(tmp_path / "config", server.url, plugin(tmp_path, "old", "new"))
    kube = connect(K8sProfile(kubeconfig=str(path)))
    server.token = "old"
    for _ in range(2):
        kube.list("Job")
    server.token = "new"
    kube.list("Job")
    assert [sent for _, sent in server.seen] == ["Bearer old", "Bearer old", "Bearer old", "Bearer new"]
    messages = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    assert len(messages) == 2
    assert messages[0]["spec"] == {"interactive": False, "cluster": {"server": server.url}}


def test_a_plug_in_is_asked_again_when_its_token_has_expired(tmp_path: Path, server: Server) -> None:
    path = write(tmp_path / "config", server.url, plugin(tmp_path, "first", "second", "third", minutes=-1))
    kube = connect(K8sProfile(kubeconfig=str(path)))
    for _ in range(2):
        kube.list("Job")
    assert [sent for _, sent in server.seen] == ["Bearer second", "Bearer third"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            {"command": "no-such-login", "installHint": "Install it from\nhere."},
            "no-such-login .*not found; Install it from here.",
        ),
        ({"command": "false"}, "false of the kubeconfig: exit code 1; log in again"),
        ({"command": "true"}, "printed no ExecCredential"),
    ],
)
def test_a_plug_in_that_does_not_work(tmp_path: Path, command: dict[str, Any], message: str) -> None:
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1beta1", **command}}
    path = write(tmp_path / "config", "http://127.0.0.1:1", user)
    with pytest.raises((ConfigError, BackendError), match=message):
        connect(K8sProfile(kubeconfig=str(path)))


def test_a_proxy_is_used(tmp_path: Path, server: Server) -> None:
    path = write(tmp_path / "config", "http://cluster.example", {"token": "x"}, **{"proxy-url": server.url})
    connect(K8sProfile(kubeconfig=str(path))).list("Job")
    assert server.seen == [("http://cluster.example/apis/batch/v1/namespaces/ns-lab/jobs", "Bearer x")]


def test_whoever_acts_as_another_does_so_here_too(tmp_path: Path, server: Server) -> None:
    user = {"token": "x", "as": "robot", "as-uid": "7", "as-groups": ["a", "b"], "as-user-extra": {"acme.org/why": ["train"]}}
    connect(K8sProfile(kubeconfig=str(write(tmp_path / "config", server.url, user)))).list("Job")
    assert sorted((key.lower(), value) for key, value in server.acts_as[0]) == [
        ("impersonate-extra-acme.org%2fwhy", "train"),
        ("impersonate-group", "a"),
        ("impersonate-group", "b"),
        ("impersonate-uid", "7"),
        ("impersonate-user", "robot"),
    ]
    connect(K8sProfile(kubeconfig=str(write(tmp_path / "plain", server.url, {"token": "x"})))).list("Job")
    assert server.acts_as[1] == []
    path = write(tmp_path / "half", server.url, {"token": "x", "as-groups": ["system:masters"]})
    with pytest.raises(ConfigError, match="without `as`: name the user"):
        connect(K8sProfile(kubeconfig=str(path)))


ASKING = """
import sys
from ropewalk.k8s.api.kubeconfig import connect
from ropewalk.k8s.profile import K8sProfile
connect(K8sProfile(kubeconfig=sys.argv[1])).list("Job")
"""


@pytest.mark.parametrize("mode", [None, "Never"])
def test_a_person_sees_the_prompt_of_a_plug_in(tmp_path: Path, server: Server, mode: str | None) -> None:
    user = plugin(tmp_path, "token")
    user["exec"]["interactiveMode"] = mode
    script = tmp_path / "login"
    script.write_text(script.read_text().replace("\n", "\necho 'enter the code ABC' >&2\n", 1))
    path = write(tmp_path / "config", server.url, user)
    outer, inner = pty.openpty()
    with os.fdopen(outer, "rb", buffering=0) as terminal, os.fdopen(inner, "wb", buffering=0) as end:
        command = [sys.executable, "-c", ASKING, str(path)]
        subprocess.run(command, stdin=end, stderr=end, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=60)
        assert b"enter the code ABC" in terminal.read(4096)
    (output,) = (tmp_path / "told").read_text().splitlines()
    assert json.loads(output)["spec"]["interactive"] is (mode is None)


def test_a_plug_in_that_must_ask_a_person_says_so_where_there_is_none(tmp_path: Path, server: Server) -> None:
    user = plugin(tmp_path, "token")
    user["exec"]["interactiveMode"] = "Always"
    with pytest.raises(ConfigError, match="there is no terminal: log in first"):
        connect(K8sProfile(kubeconfig=str(write(tmp_path / "config", server.url, user))))


@pytest.mark.parametrize(
    ("version", "ok"),
    [
        (("1", "33"), True),
        (("1", "34+"), True),
        (("1", "32"), False),
        (("1", "29+"), False),
        (("2", "0"), True),
        (("", ""), False),
    ],
)
def test_doctor_tells_of_a_server_that_is_too_old(version: tuple[str, str], ok: bool) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        requested = (
            {"gitVersion": "v1", "major": version[0], "minor": version[1]} if request.url.path == "/version" else {"groups": []}
        )
        return httpx2.Response(200, json=requested)

    with httpx2.Client(transport=httpx2.MockTransport(answer), base_url="http://127.0.0.1:9") as client:
        check = _server(Kubernetes(HttpTransport(client), "team"))
    assert check.ok is ok
    assert ("at least 1.33" in check.detail) is not ok


def test_a_server_that_would_leave_out_a_field_refuses(tmp_path: Path) -> None:
    observed: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        observed.append(request)
        message = 'strict decoding error: unknown field "spec.successPolicy"'
        return httpx2.Response(400, json={"message": message, "reason": "BadRequest"})

    client = httpx2.Client(transport=httpx2.MockTransport(answer), base_url="http://127.0.0.1:9")
    with client, pytest.raises(RefusedError, match="unknown field") as refused:
        Kubernetes(HttpTransport(client), "team").create({"kind": "Job", "metadata": {"name": "x"}})
    assert dict(observed[0].url.params) == {"fieldValidation": "Strict"}
    assert "before 1.33 lacks fields" in with_remedy(str(refused.value))


def test_who_is_not_known(tmp_path: Path, server: Server) -> None:
    server.token = "right"
    path = write(tmp_path / "config", server.url, {"token": "wrong"})
    with pytest.raises(ForbiddenError, match=r"does not accept your credentials .*; log in again"):
        connect(K8sProfile(kubeconfig=str(path))).list("Job")


def test_no_kubeconfig_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such kubeconfig; set kubeconfig in the profile"):
        connect(K8sProfile(kubeconfig=str(tmp_path / "missing")))
    (tmp_path / "bad").write_text("a: [")
    with pytest.raises(ConfigError, match="no valid configuration of a cluster"):
        connect(K8sProfile(kubeconfig=str(tmp_path / "bad")))


def test_a_connection_that_was_closed_meanwhile_tells_nothing_of_the_server() -> None:
    """Reads are repeated; a create may have succeeded, which the caller must find out."""
    requests: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        requests.append(request.method)
        if len(requests) % 2:
            raise httpx2.RemoteProtocolError("Server disconnected without sending a response.")
        return httpx2.Response(200, json={"items": []})

    with httpx2.Client(transport=httpx2.MockTransport(answer), base_url="http://127.0.0.1:9") as client:
        kube = Kubernetes(HttpTransport(client), "team")
        assert kube.list("Job") == []
        with pytest.raises(ApiAwayError, match="cannot be reached: Server disconnected"):
            kube.create({"kind": "Job", "metadata": {"name": "once"}})
    assert requests == ["GET", "GET", "POST"]

"""Exec plug-ins of a kubeconfig: programs that provide the user's token or certificate."""

import json
import os
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Generator
from datetime import UTC, datetime
from typing import Any

import httpx2

from ropewalk.cluster.errors import BackendError, ConfigError

EXEC_SECONDS = 60.0
PERSON_SECONDS = 600.0  # at a terminal, where a plug-in may show a login code or open a browser
EXEC_VERSIONS = tuple(f"client.authentication.k8s.io/{version}" for version in ("v1", "v1beta1", "v1alpha1"))


class ExecPlugin(httpx2.Auth):
    """Signs requests with the token that the program prints; runs it again if the token has expired or is refused."""

    def __init__(self, command: dict[str, Any], server: dict[str, Any]) -> None:
        if command.get("apiVersion") not in EXEC_VERSIONS:
            raise ConfigError(
                f"exec plug-in {command.get('command')} of the kubeconfig: unsupported apiVersion {command.get('apiVersion')};"
                f" use one of {', '.join(EXEC_VERSIONS)}"
            )
        self._command, self._server = command, server
        self._status: dict[str, Any] = {}

    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        """Send a request with the token; repeat it once with a new token if the server refuses it."""
        expired = self._expired()
        if expired:
            self._refresh()
        self._sign(request)
        response = yield request
        if response.status_code == 401 and not expired:
            self._refresh()
            self._sign(request)
            yield request

    def load_into(self, context: ssl.SSLContext) -> None:
        """Run the program; if it prints a certificate, load that into a TLS context."""
        self._refresh()
        certificate, key = self._status.get("clientCertificateData"), self._status.get("clientKeyData")
        if certificate and key:
            load_certificate(context, f"{certificate}\n{key}\n")

    def _sign(self, request: httpx2.Request) -> None:
        if token := self._status.get("token"):
            request.headers["Authorization"] = f"Bearer {token}"

    def _expired(self) -> bool:
        if not self._status:
            return True
        until = str(self._status.get("expirationTimestamp") or "")
        return bool(until) and datetime.fromisoformat(until) <= datetime.now(UTC)

    def _refresh(self) -> None:
        command = [self._command["command"], *(self._command.get("args") or [])]
        variables = {each["name"]: each["value"] for each in self._command.get("env") or []}
        # like kubectl: someone at a terminal sees the prompt and can answer it
        watched, mode = sys.stderr.isatty(), self._command.get("interactiveMode") or "IfAvailable"
        interactive = watched and sys.stdin.isatty() and mode != "Never"
        if mode == "Always" and not interactive:
            raise ConfigError(f"exec plug-in {command[0]} of the kubeconfig needs input, but there is no terminal: log in first")
        spec: dict[str, Any] = {"interactive": interactive}
        if self._command.get("provideClusterInfo"):
            spec["cluster"] = {key: value for key, value in self._server.items() if key != "extensions"}
        info = {"apiVersion": self._command["apiVersion"], "kind": "ExecCredential", "spec": spec}
        environment = {**os.environ, **variables, "KUBERNETES_EXEC_INFO": json.dumps(info)}
        done = self._run(command, environment, watched=watched, interactive=interactive)
        if done.returncode:
            message = " ".join((done.stderr or "").split()) or f"exit code {done.returncode}"
            raise BackendError(f"exec plug-in {command[0]} of the kubeconfig: {message[:300]}; log in again")
        try:
            self._status = dict(json.loads(done.stdout)["status"])
        except (ValueError, KeyError, TypeError):
            raise BackendError(
                f"exec plug-in {command[0]} of the kubeconfig printed no ExecCredential; run it by hand to see its output"
            ) from None

    def _run(
        self, command: list[str], environment: dict[str, str], *, watched: bool, interactive: bool
    ) -> subprocess.CompletedProcess[str]:
        seconds = PERSON_SECONDS if watched else EXEC_SECONDS
        try:
            return subprocess.run(
                command,
                stdin=None if interactive else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=None if watched else subprocess.PIPE,
                text=True,
                timeout=seconds,
                env=environment,
                check=False,
            )
        except FileNotFoundError:
            hint = " ".join(str(self._command.get("installHint") or "install it, or use another context").split())
            raise ConfigError(f"exec plug-in {command[0]} of the kubeconfig: not found; {hint}") from None
        except subprocess.TimeoutExpired:
            raise BackendError(f"exec plug-in {command[0]} of the kubeconfig did not finish within {seconds:.0f} s") from None


def load_certificate(context: ssl.SSLContext, pem: str) -> None:
    """Load a client certificate and its key, in this order, into a TLS context."""
    # OpenSSL can only read files; this temporary file is readable by the user only
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as stream:
        stream.write(pem)
        stream.flush()
        context.load_cert_chain(stream.name)

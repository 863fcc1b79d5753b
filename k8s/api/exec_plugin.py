"""An exec plug-in of a kubeconfig: a program that says who the user is, by a token or a certificate."""

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
PERSON_SECONDS = 600.0  # where a person sees what a plug-in says: it may name a code, or open a browser
EXEC_VERSIONS = tuple(f"client.authentication.k8s.io/{version}" for version in ("v1", "v1beta1", "v1alpha1"))


class ExecPlugin(httpx2.Auth):
    """Signs requests with the token that the program prints; runs it again when the token has expired or is refused."""

    def __init__(self, command: dict[str, Any], server: dict[str, Any]) -> None:
        if command.get("apiVersion") not in EXEC_VERSIONS:
            raise ConfigError(
                f"exec plug-in {command.get('command')} of the kubeconfig: apiVersion {command.get('apiVersion')} is not known;"
                f" use one of {', '.join(EXEC_VERSIONS)}"
            )
        self._command, self._server = command, server
        self._status: dict[str, Any] = {}

    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        """Send a request with the token, and once more with a fresh one where the server refuses it."""
        fresh = self._expired()
        if fresh:
            self._ask()
        self._sign(request)
        response = yield request
        if response.status_code == 401 and not fresh:
            self._ask()
            self._sign(request)
            yield request

    def present(self, context: ssl.SSLContext) -> None:
        """Run the program, and load the certificate that it prints, if it prints one, into a TLS context."""
        self._ask()
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

    def _ask(self) -> None:
        words = [self._command["command"], *(self._command.get("args") or [])]
        variables = {each["name"]: each["value"] for each in self._command.get("env") or []}
        # as kubectl does: a person at a terminal sees the prompt, and may answer it
        watched, mode = sys.stderr.isatty(), self._command.get("interactiveMode") or "IfAvailable"
        interactive = watched and sys.stdin.isatty() and mode != "Never"
        if mode == "Always" and not interactive:
            raise ConfigError(f"exec plug-in {words[0]} of the kubeconfig asks a person, and there is no terminal: log in first")
        spec: dict[str, Any] = {"interactive": interactive}
        if self._command.get("provideClusterInfo"):
            spec["cluster"] = {key: value for key, value in self._server.items() if key != "extensions"}
        info = {"apiVersion": self._command["apiVersion"], "kind": "ExecCredential", "spec": spec}
        environment = {**os.environ, **variables, "KUBERNETES_EXEC_INFO": json.dumps(info)}
        done = self._run(words, environment, watched=watched, interactive=interactive)
        if done.returncode:
            said = " ".join((done.stderr or "").split()) or f"exit code {done.returncode}"
            raise BackendError(f"exec plug-in {words[0]} of the kubeconfig: {said[:300]}; log in again")
        try:
            self._status = dict(json.loads(done.stdout)["status"])
        except (ValueError, KeyError, TypeError):
            raise BackendError(
                f"exec plug-in {words[0]} of the kubeconfig printed no ExecCredential; run it by hand to see what it says"
            ) from None

    def _run(
        self, words: list[str], environment: dict[str, str], *, watched: bool, interactive: bool
    ) -> subprocess.CompletedProcess[str]:
        seconds = PERSON_SECONDS if watched else EXEC_SECONDS
        try:
            return subprocess.run(
                words,
                stdin=None if interactive else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=None if watched else subprocess.PIPE,
                text=True,
                timeout=seconds,
                env=environment,
                check=False,
            )
        except FileNotFoundError:
            hint = " ".join(str(self._command.get("installHint") or "install it, or choose another context").split())
            raise ConfigError(f"exec plug-in {words[0]} of the kubeconfig: not found; {hint}") from None
        except subprocess.TimeoutExpired:
            raise BackendError(f"exec plug-in {words[0]} of the kubeconfig did not end within {seconds:.0f} s") from None


def load_certificate(context: ssl.SSLContext, pem: str) -> None:
    """Load a client certificate and its key, in this order, into a TLS context."""
    # OpenSSL reads files only; this one is the user's own and lives as long as the call
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as stream:
        stream.write(pem)
        stream.flush()
        context.load_cert_chain(stream.name)

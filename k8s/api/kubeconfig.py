"""How the API server is reached: kubeconfig files and contexts, in-cluster accounts, exec plug-ins, proxies, as with kubectl."""

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import yaml
from lightkube.config.client_adapter import user_auth, verify_cluster
from lightkube.config.kubeconfig import SERVICE_ACCOUNT, KubeConfig, SingleConfig
from lightkube.core.exceptions import ConfigError as LightkubeError

from cluster.errors import BackendError, ConfigError

EXEC_SECONDS = 60.0
PERSON_SECONDS = 600.0  # where a person sees what a plug-in says: it may name a code, or open a browser
EXEC_VERSIONS = tuple(f"client.authentication.k8s.io/{version}" for version in ("v1", "v1beta1", "v1alpha1"))
DEFAULT_FILE = "~/.kube/config"
RUN_VARIABLE = "ROPEWALK_JOB"  # which every pod of a run has
SECTIONS = ("clusters", "contexts", "users")

logging.getLogger("httpx2").setLevel(logging.WARNING)  # a call is no event worth a line


def open_client(kubeconfig: str | None, context: str | None, timeout: httpx2.Timeout) -> tuple[httpx2.Client, str]:
    """A client of the API server, and the namespace that the configuration names. Raises ConfigError."""
    inside = Path(SERVICE_ACCOUNT, "token").exists() and _is_own(kubeconfig, context)
    try:
        if inside:
            account = KubeConfig.from_service_account().get()
            assert account is not None
            return _client(account, {}, None, timeout), account.namespace
        config, raw, plugin, acts_as = _chosen(kubeconfig, context)
        return _client(config, raw, plugin, timeout, acts_as), config.namespace
    except (LightkubeError, OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        where = "the pod's service account" if inside else ", ".join(map(str, _files(kubeconfig)))
        raise ConfigError(
            f"{where}: not a configuration that leads to a cluster: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from None


def _is_own(kubeconfig: str | None, context: str | None) -> bool:
    """Whether a pod's own cluster is meant: the profile names no other, or names it by a file of whoever submitted the pod."""
    if RUN_VARIABLE in os.environ and not any(path.is_file() for path in _files(kubeconfig)):
        return True
    return not kubeconfig and not context and not os.environ.get("KUBECONFIG")


def _client(
    config: SingleConfig,
    raw: dict[str, Any],
    plugin: "Plugin | None",
    timeout: httpx2.Timeout,
    acts_as: Sequence[tuple[str, str]] = (),
) -> httpx2.Client:
    assert config.user is not None
    verify = verify_cluster(config.cluster, config.user, config.abs_file)
    auth: httpx2.Auth | None = plugin or user_auth(config.user)
    if plugin is not None:
        plugin.present(verify)
    name = raw.get("tls-server-name")
    hooks = {"request": [lambda request: request.extensions.update({"sni_hostname": name})]} if name else {}
    server = config.cluster.server.rstrip("/") + "/"
    return httpx2.Client(
        base_url=server,
        verify=verify,
        auth=auth,
        headers=list(acts_as),
        proxy=raw.get("proxy-url"),
        timeout=timeout,
        event_hooks=hooks,
        limits=_LIMITS,
    )


_LIMITS = httpx2.Limits(max_connections=32, max_keepalive_connections=32)


def _files(kubeconfig: str | None) -> list[Path]:
    named = kubeconfig or os.environ.get("KUBECONFIG") or DEFAULT_FILE
    return [Path(word).expanduser() for word in named.split(os.pathsep) if word]


def _acts_as(user: dict[str, Any]) -> list[tuple[str, str]]:
    """The headers of a user who acts as another; whoever left them out would act with its own rights, which may be greater."""
    name, identity = user.get("as"), user.get("as-uid")
    groups, extra = user.get("as-groups") or [], user.get("as-user-extra") or {}
    if not name and (identity or groups or extra):
        raise ConfigError("a user of the kubeconfig has as-uid, as-groups or as-user-extra and no `as`: say who is acted as")
    headers = [("Impersonate-User", name)] if name else []
    headers += [("Impersonate-Uid", identity)] if identity else []
    headers += [("Impersonate-Group", group) for group in groups]
    # a header's name has fewer letters than a key may have
    return headers + [(f"Impersonate-Extra-{quote(key, safe='')}", each) for key, values in extra.items() for each in values]


def _chosen(
    kubeconfig: str | None, context: str | None
) -> tuple[SingleConfig, dict[str, Any], "Plugin | None", list[tuple[str, str]]]:
    """The context's configuration, what the cluster's entry holds beyond it, and who we are: a plug-in tells, another lends."""
    merged = _merged(_files(kubeconfig))
    name = context or merged["current-context"]
    if not name:
        raise ConfigError(f"{merged['files']}: no current-context; name one in the cluster's profile: context")
    contexts = {each["name"]: each["context"] for each in merged["contexts"]}
    if name not in contexts:
        raise ConfigError(f"context {name!r}: not in {merged['files']}; there are {', '.join(sorted(contexts)) or 'none'}")
    chosen = contexts[name]
    clusters = {each["name"]: each["cluster"] for each in merged["clusters"]}
    users = {each["name"]: each.get("user") or {} for each in merged["users"]}
    for kind, known in (("cluster", clusters), ("user", users)):
        if chosen.get(kind) not in known:
            raise ConfigError(f"context {name!r} of {merged['files']}: there is no {kind} {chosen.get(kind)!r}")
    raw, user = clusters[chosen["cluster"]], users[chosen["user"]]
    command = user.get("exec")
    parts = {"current-context": name, "contexts": [{"name": name, "context": chosen}]}
    parts["clusters"] = [{"name": chosen["cluster"], "cluster": raw}]
    parts["users"] = [{"name": chosen["user"], "user": {k: v for k, v in user.items() if k != "exec"}}]
    config = KubeConfig.from_dict(parts).get()
    assert config is not None
    return config, raw, Plugin(command, raw) if command else None, _acts_as(user)


def _merged(files: list[Path]) -> dict[str, Any]:
    """Several files as one; the first that names a thing wins, and paths in a file are relative to it."""
    found = [path for path in files if path.is_file()]
    if not found:
        raise ConfigError(f"{', '.join(map(str, files))}: no such kubeconfig; set kubeconfig in the profile, or $KUBECONFIG")
    merged: dict[str, Any] = {section: [] for section in SECTIONS} | {"current-context": None}
    for path in found:
        content = yaml.safe_load(path.read_text()) or {}
        for section in SECTIONS:
            known = {each["name"] for each in merged[section]}
            merged[section] += [_anchored(each, path.parent) for each in content.get(section) or [] if each["name"] not in known]
        merged["current-context"] = merged["current-context"] or content.get("current-context")
    return {**merged, "files": ", ".join(map(str, found))}


def _anchored(entry: dict[str, Any], folder: Path) -> dict[str, Any]:
    paths = ("certificate-authority", "client-certificate", "client-key", "tokenFile")

    def value(key: str, inner: Any) -> Any:
        if key in paths and inner:
            return str(folder.absolute() / inner)
        if key == "command" and "/" in str(inner):  # kubectl looks for a plug-in without a slash on PATH
            return str(folder.absolute() / inner)
        return {k: value(k, v) for k, v in inner.items()} if isinstance(inner, dict) else inner

    return {key: value(key, inner) for key, inner in entry.items()}


class Plugin(httpx2.Auth):
    """A program that tells who we are: a token, or a certificate; asked again when it has expired or is refused."""

    def __init__(self, command: dict[str, Any], server: dict[str, Any]) -> None:
        if command.get("apiVersion") not in EXEC_VERSIONS:
            raise ConfigError(f"exec plug-in {command.get('command')}: apiVersion {command.get('apiVersion')} is not known")
        self._command, self._server = command, server
        self._status: dict[str, Any] = {}

    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        """Add the token; once more with a fresh one where the server refuses it."""
        fresh = self._expired()
        if fresh:
            self._ask()
        self._sign(request)
        response = yield request
        if response.status_code == 401 and not fresh:
            self._ask()
            self._sign(request)
            yield request

    def present(self, context: Any) -> None:
        """Hand a certificate that the program tells to a TLS context."""
        self._ask()
        certificate, key = self._status.get("clientCertificateData"), self._status.get("clientKeyData")
        if certificate and key:
            # OpenSSL reads files only; this one is the user's own and lives as long as the call
            with tempfile.NamedTemporaryFile("w", suffix=".pem") as stream:
                stream.write(f"{certificate}\n{key}\n")
                stream.flush()
                context.load_cert_chain(stream.name)

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
        # as kubectl does: whoever sits there sees the prompt, and may answer it
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
            raise BackendError(f"exec plug-in {words[0]} of the kubeconfig printed no ExecCredential") from None

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

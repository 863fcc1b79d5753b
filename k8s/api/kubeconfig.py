"""Connects to a cluster as kubectl does: with kubeconfig files and contexts, or with the service account of this pod."""

import base64
import os
import ssl
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import yaml

from ropewalk.cluster.errors import ConfigError
from ropewalk.k8s.api.client import Kubernetes
from ropewalk.k8s.api.exec_plugin import ExecPlugin, load_certificate
from ropewalk.k8s.api.http_transport import LIMITS, TIMEOUT, HttpTransport
from ropewalk.k8s.api.in_cluster import ACCOUNT, server_of
from ropewalk.k8s.profile import K8sProfile

DEFAULT_FILE = "~/.kube/config"
DEFAULT_NAMESPACE = "default"
RUN_VARIABLE = "ROPEWALK_JOB"  # set in every pod of a run
SECTIONS = {"clusters": "cluster", "contexts": "context", "users": "user"}  # lists of a kubeconfig, and the key of their entries
FILE_KEYS = ("certificate-authority", "client-certificate", "client-key", "tokenFile")
Entry = dict[str, Any]


def connect(profile: K8sProfile) -> Kubernetes:
    """Return a client for a profile's cluster and namespace. Sends no request. Raises ConfigError."""
    files = _files(profile.kubeconfig)
    inside = (ACCOUNT / "token").exists() and _is_own_cluster(profile, files)
    try:
        cluster, user, namespace = _of_this_pod() if inside else _of_context(files, profile.context)
        return Kubernetes(HttpTransport(_http_client(cluster, user)), profile.namespace or namespace)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        source = "the pod's service account" if inside else ", ".join(map(str, files))
        raise ConfigError(
            f"{source}: no valid configuration of a cluster: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from None


def _files(kubeconfig: str | None) -> list[Path]:
    paths = kubeconfig or os.environ.get("KUBECONFIG") or DEFAULT_FILE
    return [Path(path).expanduser() for path in paths.split(os.pathsep) if path]


def _is_own_cluster(profile: K8sProfile, files: list[Path]) -> bool:
    """Return True if a pod's own cluster is meant: the profile names no other, or only a file of the submitting machine."""
    if RUN_VARIABLE in os.environ and not any(path.is_file() for path in files):
        return True
    return not profile.kubeconfig and not profile.context and not os.environ.get("KUBECONFIG")


def _of_this_pod() -> tuple[Entry, Entry, str]:
    """Return cluster, user and namespace of this pod's service account as kubeconfig entries."""
    cluster = {"server": server_of(os.environ), "certificate-authority": str(ACCOUNT / "ca.crt")}
    return cluster, {"tokenFile": str(ACCOUNT / "token")}, (ACCOUNT / "namespace").read_text().strip()


def _of_context(files: list[Path], context: str | None) -> tuple[Entry, Entry, str]:
    """Return cluster, user and namespace of a context, or of the current one."""
    existing = [path for path in files if path.is_file()]
    if not existing:
        raise ConfigError(f"{', '.join(map(str, files))}: no such kubeconfig; set kubeconfig in the profile, or $KUBECONFIG")
    source = ", ".join(map(str, existing))
    sections, current = _merged(existing)
    name = context or current
    if not name:
        raise ConfigError(f"{source}: no current-context; name one in the cluster's profile: context")
    if name not in sections["contexts"]:
        contexts = ", ".join(sorted(sections["contexts"])) or "none"
        raise ConfigError(f"context {name!r}: not in {source}; it has {contexts}")
    chosen = sections["contexts"][name]
    for section, kind in SECTIONS.items():
        if kind != "context" and chosen.get(kind) not in sections[section]:
            raise ConfigError(f"context {name!r} of {source}: there is no {kind} {chosen.get(kind)!r}; add it, or use another")
    cluster, user = sections["clusters"][chosen["cluster"]], sections["users"][chosen["user"]]
    return cluster, user, chosen.get("namespace") or DEFAULT_NAMESPACE


def _merged(files: list[Path]) -> tuple[dict[str, dict[str, Entry]], str | None]:
    """Merge several files: entries by name and the current context; the first file that defines something wins."""
    sections: dict[str, dict[str, Entry]] = {section: {} for section in SECTIONS}
    current: str | None = None
    for path in files:
        content = yaml.safe_load(path.read_text()) or {}
        for section, key in SECTIONS.items():
            for entry in content.get(section) or []:
                sections[section].setdefault(entry["name"], _anchored(entry.get(key) or {}, path.parent.absolute()))
        current = current or content.get("current-context")
    return sections, current


def _anchored(entry: Entry, folder: Path) -> Entry:
    """Resolve the relative paths of an entry against the folder of its kubeconfig."""

    def value(key: str, inner: Any) -> Any:
        # like kubectl: a plug-in without a slash is looked up on PATH
        if inner and (key in FILE_KEYS or (key == "command" and "/" in str(inner))):
            return str(folder / inner)
        return _anchored(inner, folder) if isinstance(inner, dict) else inner

    return {key: value(key, inner) for key, inner in entry.items()}


def _http_client(cluster: Entry, user: Entry) -> httpx2.Client:
    context, auth = _trusted(cluster), _auth(user, cluster)
    _load_user_certificate(user, context)
    if isinstance(auth, ExecPlugin):
        auth.load_into(context)
    name = cluster.get("tls-server-name")
    hooks = {"request": [lambda request: request.extensions.update({"sni_hostname": name})]} if name else {}
    return httpx2.Client(
        base_url=cluster["server"].rstrip("/") + "/",
        verify=context,
        auth=auth,
        headers=_impersonation(user),
        proxy=cluster.get("proxy-url"),
        timeout=TIMEOUT,
        limits=LIMITS,
        event_hooks=hooks,
    )


def _trusted(cluster: Entry) -> ssl.SSLContext:
    """Return a TLS context with the authorities that sign the server's certificate."""
    if path := cluster.get("certificate-authority"):
        return ssl.create_default_context(cafile=path)
    if data := cluster.get("certificate-authority-data"):
        return ssl.create_default_context(cadata=_decoded(data))
    return httpx2.create_ssl_context(verify=not cluster.get("insecure-skip-tls-verify"))


def _load_user_certificate(user: Entry, context: ssl.SSLContext) -> None:
    """Load the user's certificate, if there is one, into a TLS context."""
    pieces = []
    for key in ("client-certificate", "client-key"):
        if data := user.get(f"{key}-data"):
            pieces.append(_decoded(data))
        elif path := user.get(key):
            pieces.append(Path(path).read_text())
    if len(pieces) == 1:
        raise ConfigError("a user of the kubeconfig has only one of client-certificate and client-key; both are needed")
    if pieces:
        load_certificate(context, "\n".join(pieces))


def _decoded(data: str) -> str:
    return base64.b64decode(data).decode("ascii", errors="ignore")  # comments between certificates may not be ASCII


def _auth(user: Entry, cluster: Entry) -> httpx2.Auth | None:
    """Return the authentication of requests; None if the user has only a certificate, or nothing."""
    if command := user.get("exec"):
        return ExecPlugin(command, cluster)
    if path := user.get("tokenFile"):
        Path(path).stat()  # report a missing file now
        return Token(Path(path).read_text)
    if token := user.get("token"):
        return Token(lambda: str(token))
    if user.get("username") and user.get("password"):
        return httpx2.BasicAuth(user["username"], user["password"])
    if user.get("auth-provider"):
        raise ConfigError("a user of the kubeconfig has an auth-provider, which Kubernetes has removed: use an exec plug-in")
    return None


class Token(httpx2.Auth):
    """Signs each request with a token that is read each time, because token files are replaced periodically."""

    def __init__(self, read: Callable[[], str]) -> None:
        self._read = read

    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        request.headers["Authorization"] = f"Bearer {self._read().strip()}"
        yield request


def _impersonation(user: Entry) -> list[tuple[str, str]]:
    """Return the headers of impersonation. Without them requests would run with the user's own, possibly greater, rights."""
    name, identity = user.get("as"), user.get("as-uid")
    groups, extra = user.get("as-groups") or [], user.get("as-user-extra") or {}
    if not name and (identity or groups or extra):
        raise ConfigError("a user of the kubeconfig has as-uid, as-groups or as-user-extra without `as`: name the user")
    headers = [("Impersonate-User", name)] if name else []
    headers += [("Impersonate-Uid", identity)] if identity else []
    headers += [("Impersonate-Group", group) for group in groups]
    # header names allow fewer characters than these keys
    return headers + [(f"Impersonate-Extra-{quote(key, safe='')}", each) for key, values in extra.items() for each in values]

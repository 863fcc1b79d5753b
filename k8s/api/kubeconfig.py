"""Connect to a cluster as kubectl does: by kubeconfig files and their contexts, or by the service account of this pod."""

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
RUN_VARIABLE = "ROPEWALK_JOB"  # which every pod of a run has
SECTIONS = {"clusters": "cluster", "contexts": "context", "users": "user"}  # of a kubeconfig, and the key of each entry there
FILE_KEYS = ("certificate-authority", "client-certificate", "client-key", "tokenFile")
Entry = dict[str, Any]


def connect(profile: K8sProfile) -> Kubernetes:
    """The cluster and the namespace that a profile means. Nothing is asked of the server yet. Raises ConfigError."""
    files = _files(profile.kubeconfig)
    inside = (ACCOUNT / "token").exists() and _is_own(profile, files)
    try:
        cluster, user, namespace = _of_this_pod() if inside else _of_context(files, profile.context)
        return Kubernetes(HttpTransport(_http_client(cluster, user)), profile.namespace or namespace)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        where = "the pod's service account" if inside else ", ".join(map(str, files))
        raise ConfigError(
            f"{where}: not a configuration that leads to a cluster: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from None


def _files(kubeconfig: str | None) -> list[Path]:
    named = kubeconfig or os.environ.get("KUBECONFIG") or DEFAULT_FILE
    return [Path(word).expanduser() for word in named.split(os.pathsep) if word]


def _is_own(profile: K8sProfile, files: list[Path]) -> bool:
    """Whether a pod's own cluster is meant: the profile names no other, or names it by a file of the submitter's machine."""
    if RUN_VARIABLE in os.environ and not any(path.is_file() for path in files):
        return True
    return not profile.kubeconfig and not profile.context and not os.environ.get("KUBECONFIG")


def _of_this_pod() -> tuple[Entry, Entry, str]:
    """Cluster, user and namespace of this pod's service account, in the words of a kubeconfig."""
    cluster = {"server": server_of(os.environ), "certificate-authority": str(ACCOUNT / "ca.crt")}
    return cluster, {"tokenFile": str(ACCOUNT / "token")}, (ACCOUNT / "namespace").read_text().strip()


def _of_context(files: list[Path], context: str | None) -> tuple[Entry, Entry, str]:
    """Cluster, user and namespace of a context, or of the current one."""
    found = [path for path in files if path.is_file()]
    if not found:
        raise ConfigError(f"{', '.join(map(str, files))}: no such kubeconfig; set kubeconfig in the profile, or $KUBECONFIG")
    where = ", ".join(map(str, found))
    sections, current = _merged(found)
    name = context or current
    if not name:
        raise ConfigError(f"{where}: no current-context; name one in the cluster's profile: context")
    if name not in sections["contexts"]:
        known = ", ".join(sorted(sections["contexts"])) or "none"
        raise ConfigError(f"context {name!r}: not in {where}; there are {known}")
    chosen = sections["contexts"][name]
    for section, kind in SECTIONS.items():
        if kind != "context" and chosen.get(kind) not in sections[section]:
            raise ConfigError(f"context {name!r} of {where}: there is no {kind} {chosen.get(kind)!r}; add it, or choose another")
    cluster, user = sections["clusters"][chosen["cluster"]], sections["users"][chosen["user"]]
    return cluster, user, chosen.get("namespace") or DEFAULT_NAMESPACE


def _merged(files: list[Path]) -> tuple[dict[str, dict[str, Entry]], str | None]:
    """Clusters, contexts and users of several files by name, and the current context; the first file that has a thing wins."""
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
    """An entry of a kubeconfig in `folder`, with the paths in it relative to that folder."""

    def value(key: str, inner: Any) -> Any:
        # kubectl looks for a plug-in without a slash on PATH
        if inner and (key in FILE_KEYS or (key == "command" and "/" in str(inner))):
            return str(folder / inner)
        return _anchored(inner, folder) if isinstance(inner, dict) else inner

    return {key: value(key, inner) for key, inner in entry.items()}


def _http_client(cluster: Entry, user: Entry) -> httpx2.Client:
    context, auth = _trusted(cluster), _proof(user, cluster)
    _present(user, context)
    if isinstance(auth, ExecPlugin):
        auth.present(context)
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
    """A TLS context with the authorities that sign the server's certificate."""
    if path := cluster.get("certificate-authority"):
        return ssl.create_default_context(cafile=path)
    if data := cluster.get("certificate-authority-data"):
        return ssl.create_default_context(cadata=_decoded(data))
    return httpx2.create_ssl_context(verify=not cluster.get("insecure-skip-tls-verify"))


def _present(user: Entry, context: ssl.SSLContext) -> None:
    """Load the user's certificate, if there is one, into a TLS context."""
    pieces = []
    for key in ("client-certificate", "client-key"):
        if data := user.get(f"{key}-data"):
            pieces.append(_decoded(data))
        elif path := user.get(key):
            pieces.append(Path(path).read_text())
    if len(pieces) == 1:
        raise ConfigError("a user of the kubeconfig has a client-certificate without its client-key, or the other way round")
    if pieces:
        load_certificate(context, "\n".join(pieces))


def _decoded(data: str) -> str:
    return base64.b64decode(data).decode("ascii", errors="ignore")  # comments between certificates may be anything


def _proof(user: Entry, cluster: Entry) -> httpx2.Auth | None:
    """What signs each request for the user; None where a certificate does, or nothing."""
    if command := user.get("exec"):
        return ExecPlugin(command, cluster)
    if path := user.get("tokenFile"):
        Path(path).stat()  # where it is missing it is said now
        return Token(Path(path).read_text)
    if token := user.get("token"):
        return Token(lambda: str(token))
    if user.get("username") and user.get("password"):
        return httpx2.BasicAuth(user["username"], user["password"])
    if user.get("auth-provider"):
        raise ConfigError("a user of the kubeconfig has an auth-provider, which Kubernetes has removed: use an exec plug-in")
    return None


class Token(httpx2.Auth):
    """Signs each request with a token, which is read each time: one in a file is replaced from time to time."""

    def __init__(self, read: Callable[[], str]) -> None:
        self._read = read

    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        """Send the request with the token."""
        request.headers["Authorization"] = f"Bearer {self._read().strip()}"
        yield request


def _impersonation(user: Entry) -> list[tuple[str, str]]:
    """The headers of a user who acts as another; without them one acts with one's own rights, which may be greater."""
    name, identity = user.get("as"), user.get("as-uid")
    groups, extra = user.get("as-groups") or [], user.get("as-user-extra") or {}
    if not name and (identity or groups or extra):
        raise ConfigError("a user of the kubeconfig has as-uid, as-groups or as-user-extra and no `as`: say who is acted as")
    headers = [("Impersonate-User", name)] if name else []
    headers += [("Impersonate-Uid", identity)] if identity else []
    headers += [("Impersonate-Group", group) for group in groups]
    # a header's name has fewer letters than a key may have
    return headers + [(f"Impersonate-Extra-{quote(key, safe='')}", each) for key, values in extra.items() for each in values]

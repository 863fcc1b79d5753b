"""The API server, spoken to in plain objects; each way in which it can say no is an error of its own."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, BinaryIO

import httpx2
import orjson

from cluster.errors import BackendError, ConfigError
from k8s.api.exec_stdin import READY
from k8s.api.kubeconfig import open_client
from k8s.api.objects import Object
from k8s.profile import K8sProfile

if TYPE_CHECKING:
    from k8s.api.exec import WebSocket

ANSWER_SECONDS = 8.0  # a person waits for the answer
CONNECT_SECONDS = 4.0
SWITCHED = 101
EXEC_PROTOCOL = "v5.channel.k8s.io"
STDIN, STDOUT, STDERR, END = 0, 1, 2, 3  # channels of an exec
CHUNK_BYTES = 128 << 10
CLOSE_STDIN = bytes((255, STDIN))
FED_SECONDS = 300.0  # what a program that is given input may take until its next word

KUEUE, OLDER_KUEUE = "apis/kueue.x-k8s.io/v1beta2", "apis/kueue.x-k8s.io/v1beta1"

# kind: (API group and version, plural)
KINDS = {
    "Job": ("apis/batch/v1", "jobs"),
    "Pod": ("api/v1", "pods"),
    "ConfigMap": ("api/v1", "configmaps"),
    "Event": ("api/v1", "events"),
    "Node": ("api/v1", "nodes"),
    "Namespace": ("api/v1", "namespaces"),
    "ResourceQuota": ("api/v1", "resourcequotas"),
    "PersistentVolumeClaim": ("api/v1", "persistentvolumeclaims"),
    "ServiceAccount": ("api/v1", "serviceaccounts"),
    "PriorityClass": ("apis/scheduling.k8s.io/v1", "priorityclasses"),
    "SelfSubjectAccessReview": ("apis/authorization.k8s.io/v1", "selfsubjectaccessreviews"),
    "SelfSubjectRulesReview": ("apis/authorization.k8s.io/v1", "selfsubjectrulesreviews"),
    "JobSet": ("apis/jobset.x-k8s.io/v1alpha2", "jobsets"),
    "Workload": (KUEUE, "workloads"),
    "LocalQueue": (KUEUE, "localqueues"),
    "ClusterQueue": (KUEUE, "clusterqueues"),
}
GLOBAL = {"Node", "Namespace", "PriorityClass", "SelfSubjectAccessReview", "SelfSubjectRulesReview", "ClusterQueue"}
STRICT = {"fieldValidation": "Strict"}
PATCHES = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "json": "application/json-patch+json",
}


class ApiAwayError(BackendError):
    """The API server does not answer, or says that it cannot at present: what was asked may have been done or not."""


class NotFoundError(BackendError):
    """There is no such object, kind or namespace."""


class ConflictError(BackendError):
    """An object of this name exists already, or was changed meanwhile."""


class ForbiddenError(BackendError):
    """The user, a quota or a policy does not allow it."""


class RefusedError(BackendError):
    """The API server finds the object invalid."""


class Kubernetes:
    """One namespace of one cluster."""

    def __init__(self, client: httpx2.Client, namespace: str) -> None:
        self.http, self.namespace = client, namespace

    @property
    def server(self) -> str:
        """Where the API server is."""
        return str(self.http.base_url).rstrip("/")

    # --- objects

    def get(self, kind: str, name: str) -> Object:
        """An object. Raises NotFoundError."""
        return self._read(self.path(kind, name))

    def list(self, kind: str, labels: Mapping[str, str] | str = "", fields: str = "") -> Sequence[Object]:
        """All objects of a kind in one call, of these labels and fields."""
        selector = labels if isinstance(labels, str) else ",".join(f"{key}={value}" for key, value in labels.items())
        params = {key: value for key, value in (("labelSelector", selector), ("fieldSelector", fields)) if value}
        items: list[Object] = self._read(self.path(kind), params).get("items") or []
        return items

    def create(self, each: Object) -> Object:
        """Create an object; what it became. Raises ConflictError if one of its name exists.

        Raises RefusedError where the server does not know a field: it would leave it out, and with it what the run relies on.
        """
        return self._object("POST", self.path(each["kind"]), params=STRICT, body=each)

    def patch(self, kind: str, name: str, patch: Any, how: str = "merge", part: str = "") -> Object:
        """Change an object, or a part of it such as its status: by a merge, strategic or json patch."""
        return self._object("PATCH", self.path(kind, name, part), body=patch, content_type=PATCHES[how])

    def delete(self, kind: str, name: str, *, propagation: str = "Background", grace_seconds: int | None = None) -> None:
        """Delete an object and what it owns; one that is gone already is no error."""
        options: Object = {"propagationPolicy": propagation}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        try:
            self._object("DELETE", self.path(kind, name), body=options)
        except NotFoundError:
            return

    def delete_all(self, kind: str, labels: str, *, propagation: str = "Background") -> None:
        """Delete all objects of a kind with these labels in one call."""
        self._object("DELETE", self.path(kind), params={"labelSelector": labels}, body={"propagationPolicy": propagation})

    def watch(self, kind: str, labels: str = "", fields: str = "", seconds: int = 60) -> Iterator[tuple[str, Object]]:
        """(ADDED, MODIFIED or DELETED, object) as it happens, beginning with what there is, for some seconds."""
        params = {"watch": "true", "labelSelector": labels, "fieldSelector": fields, "timeoutSeconds": str(seconds)}
        patient = httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS, read=seconds + ANSWER_SECONDS)
        with self._answers(self.path(kind)), self.http.stream("GET", self.path(kind), params=params, timeout=patient) as response:
            if response.status_code >= 400:
                response.read()
                raise _error(response, self)
            for line in response.iter_lines():
                event = orjson.loads(line)
                if event["type"] == "ERROR":
                    raise ApiAwayError(f"watching {kind}: {event['object'].get('message')}")
                yield event["type"], event["object"]

    def raw(self, path: str) -> Object:
        """What the API server has at a path, such as `version`."""
        return self._object("GET", path)

    def groups(self) -> dict[str, str]:
        """The API groups that there are, each with its preferred version."""
        found = self.raw("apis")["groups"]
        return {each["name"]: each["preferredVersion"]["version"] for each in found}

    def logs(self, pod: str, tail: int = 20, *, previous: bool = False) -> str:
        """The end of what a pod printed; empty where it has printed nothing or is gone."""
        params = {"tailLines": str(tail), **({"previous": "true"} if previous else {})}
        try:
            with self._answers(pod):
                response = self.http.get(self.path("Pod", pod, "log"), params=params)
        except BackendError:
            return ""
        return response.text if response.status_code == 200 else ""

    def execute(self, pod: str, words: Sequence[str], stdin: BinaryIO | None = None, stdout: BinaryIO | None = None) -> None:
        """Run a command in a pod, as kubectl exec does; one that is given input asks for it (`k8s.api.exec_stdin`).

        Raises BackendError with what it said on stderr if it fails.
        """
        from k8s.api.exec import BrokenOffError, WebSocket, upgrade_headers  # noqa: PLC0415 - a tenth of what `submit` takes

        params = {"command": list(words), "stdout": "true", "stderr": "true", **({"stdin": "true"} if stdin else {})}
        said, end, hungry = bytearray(), b"", stdin
        request = self.http.stream("GET", self.path("Pod", pod, "exec"), params=params, headers=upgrade_headers(EXEC_PROTOCOL))
        with self._answers(pod), request as response:
            if response.status_code != SWITCHED:
                response.read()
                raise _error(response, self)
            socket = WebSocket(response.extensions["network_stream"])
            try:
                for message in socket.messages(FED_SECONDS if stdin is not None else None):
                    channel, content = message[0], message[1:]
                    if channel == STDOUT and content and hungry is not None:  # the API server begins with an empty message
                        content = content.removeprefix(READY)
                        with suppress(BrokenOffError):  # what it says of its end is still to come
                            _feed(socket, hungry)
                        hungry = None
                    if channel == STDOUT and stdout is not None:
                        stdout.write(content)
                    elif channel == STDERR:
                        said += content
                    elif channel == END:
                        end = content
                        break
            except BrokenOffError as error:
                raise ApiAwayError(f"the API server {self.server} has broken off ({pod}): {error}") from None
            socket.say_goodbye()
        if not end:
            raise ApiAwayError(f"the API server {self.server} has broken off ({pod}): closed before the end")
        status = json.loads(end)
        if status.get("status") != "Success":
            words_said = " ".join(said.decode(errors="replace").split()) or status.get("message", "")
            raise BackendError(f"{words[0]} in pod {pod}: {words_said[-500:]}")

    # --- plumbing

    def path(self, kind: str, name: str = "", part: str = "") -> str:
        """The path of a kind, an object, or a part of one."""
        base, plural = KINDS[kind]
        place = base if kind in GLOBAL else f"{base}/namespaces/{self.namespace}"
        return "/".join(word for word in (place, plural, name, part) if word)

    def _read(self, path: str, params: Mapping[str, str] | None = None) -> Object:
        """What is at a path; of Kueue's, its older version does where the newer is not known."""
        try:
            return self._object("GET", path, params=params)
        except NotFoundError:
            if not path.startswith(KUEUE):
                raise
            return self._object("GET", path.replace(KUEUE, OLDER_KUEUE, 1), params=params)

    def _object(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> Object:
        headers = {"Content-Type": content_type} if body is not None else {}
        content = orjson.dumps(body) if body is not None else None
        with self._answers(path):
            try:
                response = self.http.request(method, path, params=params, content=content, headers=headers)
            except httpx2.RemoteProtocolError:
                if method != "GET":
                    raise
                # a connection that was kept open was closed just now, which tells nothing of the server
                response = self.http.request(method, path, params=params, content=content, headers=headers)
        if response.status_code >= 400:
            raise _error(response, self)
        found: Object = orjson.loads(response.content)
        return found

    @contextmanager
    def _answers(self, what: str) -> Iterator[None]:
        try:
            yield
        except httpx2.TimeoutException:
            raise ApiAwayError(f"the API server {self.server} did not answer in time ({what})") from None
        except httpx2.TransportError as error:
            raise ApiAwayError(f"the API server {self.server} cannot be reached: {error}") from None


def connect(profile: K8sProfile) -> Kubernetes:
    """The cluster that a profile means. Nothing is asked of it yet. Raises ConfigError."""
    timeout = httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
    client, namespace = open_client(profile.kubeconfig, profile.context, timeout)
    return Kubernetes(client, profile.namespace or namespace)


def _feed(socket: "WebSocket", stdin: BinaryIO) -> None:
    while chunk := stdin.read(CHUNK_BYTES):
        socket.send(bytes((STDIN,)) + chunk)
    socket.send(CLOSE_STDIN)


def _error(response: httpx2.Response, where: Kubernetes) -> BackendError | ConfigError:
    """What the API server says, as the error that it means."""
    try:
        status = orjson.loads(response.content)
        said, reason = " ".join(str(status.get("message") or "").split()), status.get("reason") or ""
    except orjson.JSONDecodeError:  # a proxy answers
        said, reason = " ".join(response.text.split())[:300], ""
    said = said or f"HTTP {response.status_code}"
    if response.status_code == 401:
        return ForbiddenError(f"the API server {where.server} does not know who you are ({said}); log in again")
    if response.status_code in (429, 500, 502, 503, 504):
        return ApiAwayError(f"the API server {where.server} cannot answer: {said}")
    kinds = {403: ForbiddenError, 404: NotFoundError, 409: ConflictError, 410: ConflictError}
    kind = kinds.get(response.status_code, RefusedError)
    return kind(f"Kubernetes: {said}{f' ({reason})' if reason and reason not in said else ''}")

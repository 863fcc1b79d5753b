"""Client of the Kubernetes API server for plain objects; each kind of refusal has its own error type.

Used outside the cluster (`kubeconfig.connect`, with httpx2) and in the pods of a run (`in_cluster`, with http.client). Every pod
imports this module as it starts, so it imports neither of the two.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from ropewalk.cluster.errors import BackendError, SchedulerAwayError
from ropewalk.k8s.api.objects import Object

if TYPE_CHECKING:
    from httpcore2 import NetworkStream

KUEUE, OLDER_KUEUE = "apis/kueue.x-k8s.io/v1beta2", "apis/kueue.x-k8s.io/v1beta1"

# kind: (API group and version, plural)
KINDS = {
    "Job": ("apis/batch/v1", "jobs"),
    "Service": ("api/v1", "services"),
    "NetworkPolicy": ("apis/networking.k8s.io/v1", "networkpolicies"),
    "Pod": ("api/v1", "pods"),
    "ConfigMap": ("api/v1", "configmaps"),
    "Secret": ("api/v1", "secrets"),
    "Event": ("api/v1", "events"),
    "Namespace": ("api/v1", "namespaces"),
    "Node": ("api/v1", "nodes"),
    "ResourceQuota": ("api/v1", "resourcequotas"),
    "PersistentVolumeClaim": ("api/v1", "persistentvolumeclaims"),
    "ServiceAccount": ("api/v1", "serviceaccounts"),
    "PriorityClass": ("apis/scheduling.k8s.io/v1", "priorityclasses"),
    "SelfSubjectAccessReview": ("apis/authorization.k8s.io/v1", "selfsubjectaccessreviews"),
    "Workload": (KUEUE, "workloads"),
    "LocalQueue": (KUEUE, "localqueues"),
    "ClusterQueue": (KUEUE, "clusterqueues"),
}
GLOBAL = {"Namespace", "Node", "PriorityClass", "SelfSubjectAccessReview", "ClusterQueue"}
STRICT = {"fieldValidation": "Strict"}
PLAIN = "application/json"
MERGE = "application/merge-patch+json"


class ApiError(BackendError):
    """The API server did not fulfil a request."""


class ApiAwayError(ApiError, SchedulerAwayError):
    """The API server does not answer or is temporarily unable to; the request may or may not have taken effect."""


class NotFoundError(ApiError):
    """The object, kind or namespace does not exist."""


class ConflictError(ApiError):
    """An object with this name exists already, or was changed concurrently."""


class ForbiddenError(ApiError):
    """The server does not accept the credentials, or permissions, a quota or a policy forbid the request."""


class RefusedError(ApiError):
    """The API server considers the object invalid."""


class Transport(Protocol):
    """Sends requests to one API server with the caller's credentials."""

    server: str

    def request(self, method: str, path: str, params: Mapping[str, str], body: Any, content_type: str) -> tuple[int, Any]:
        """Send a request; return status and content: parsed JSON, or text if it is not JSON. Raises ApiAwayError."""
        ...


class StreamTransport(Transport, Protocol):
    """A transport with persistent connections that can upgrade one to a WebSocket."""

    def close(self) -> None: ...

    def upgrade(
        self, path: str, params: Mapping[str, Any], headers: Mapping[str, str]
    ) -> "AbstractContextManager[tuple[int, Any, NetworkStream]]":
        """Request an upgrade; yield status, content and connection. Raises ApiAwayError."""
        ...


class ApiClient:
    """The objects of one namespace in one cluster."""

    login_remedy = "log in again"  # if the server does not accept the credentials
    rights_remedy = ""  # if it does but forbids the request

    def __init__(self, transport: Transport, namespace: str) -> None:
        self._transport, self.namespace = transport, namespace

    @property
    def server(self) -> str:
        return self._transport.server

    def get(self, kind: str, name: str) -> Object:
        """Read an object. Raises NotFoundError."""
        return self._read(self.path(kind, name))

    def find(self, kind: str, name: str) -> Object | None:
        """Read an object, or return None if there is none with this name."""
        with suppress(NotFoundError):
            return self.get(kind, name)
        return None

    def list(self, kind: str, labels: Mapping[str, str] | str = "", fields: str = "") -> Sequence[Object]:
        """List all objects of a kind with these labels and fields, in one call."""
        selector = labels if isinstance(labels, str) else ",".join(f"{key}={value}" for key, value in labels.items())
        params = {key: value for key, value in (("labelSelector", selector), ("fieldSelector", fields)) if value}
        items: list[Object] = self._read(self.path(kind), params).get("items") or []
        return items

    def create(self, each: Object) -> Object:
        """Create an object and return it as completed by the server. Raises ConflictError if one with its name exists.

        Raises RefusedError for unknown fields, which the server would otherwise drop although the run relies on them.
        """
        return self._ask("POST", self.path(each["kind"]), STRICT, each)

    def patch(self, kind: str, name: str, patch: Object, part: str = "") -> Object:
        """Change an object, or a part of it such as its status, with a merge patch."""
        return self._ask("PATCH", self.path(kind, name, part), body=patch, content_type=MERGE)

    def delete(
        self, kind: str, name: str, *, propagation: str = "Background", grace_seconds: int | None = None, uid: str = ""
    ) -> None:
        """Delete an object and its dependents. No error if it is gone or its name belongs to an object with another `uid`."""
        options: Object = {"propagationPolicy": propagation}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        if uid:
            options["preconditions"] = {"uid": uid}
        try:
            self._ask("DELETE", self.path(kind, name), body=options)
        except NotFoundError:
            return
        except ConflictError:
            if not uid:
                raise

    def raw(self, path: str) -> Object:
        """Read any path of the API server, such as `version`."""
        return self._ask("GET", path)

    def groups(self) -> dict[str, str]:
        """Return the preferred version of each API group of the server."""
        groups = self.raw("apis")["groups"]
        return {group["name"]: group["preferredVersion"]["version"] for group in groups}

    def path(self, kind: str, name: str = "", part: str = "") -> str:
        base, plural = KINDS[kind]
        collection = base if kind in GLOBAL else f"{base}/namespaces/{self.namespace}"
        return "/".join(segment for segment in (collection, plural, name, part) if segment)

    def _read(self, path: str, params: Mapping[str, str] | None = None) -> Object:
        """Read a path; if the server lacks Kueue's newer API version, read the older one."""
        try:
            return self._ask("GET", path, params)
        except NotFoundError:
            if not path.startswith(KUEUE):
                raise
            return self._ask("GET", path.replace(KUEUE, OLDER_KUEUE, 1), params)

    def _ask(
        self, method: str, path: str, params: Mapping[str, str] | None = None, body: Any = None, content_type: str = PLAIN
    ) -> Object:
        status, answer = self._transport.request(method, path, params or {}, body, content_type)
        if status >= 400:
            raise self._error(status, answer)
        content: Object = answer
        return content

    def _error(self, status: int, answer: Any) -> ApiError:
        is_object = isinstance(answer, dict)  # otherwise a proxy has answered
        message = " ".join(str(answer.get("message") or "").split()) if is_object else " ".join(str(answer).split())[:300]
        reason = str(answer.get("reason") or "") if is_object else ""
        message = (message or f"HTTP {status}") + (f" ({reason})" if reason and reason not in message else "")
        if status == 401:
            return ForbiddenError(
                f"the API server {self.server} does not accept your credentials ({message}); {self.login_remedy}"
            )
        if status in (429, 500, 502, 503, 504):
            return ApiAwayError(f"the API server {self.server} cannot answer: {message}")
        kinds = {403: ForbiddenError, 404: NotFoundError, 409: ConflictError, 410: ConflictError}
        remedy = self.rights_remedy if status == 403 else ""
        return kinds.get(status, RefusedError)(f"Kubernetes: {message}{remedy}")


class Kubernetes(ApiClient):
    """A client that can also run commands in pods; used outside of pods."""

    def __init__(self, transport: StreamTransport, namespace: str) -> None:
        super().__init__(transport, namespace)
        self.transport = transport

    def close(self) -> None:
        self.transport.close()

    def execute(self, pod: str, command: Sequence[str], stdin: BinaryIO | None = None, stdout: BinaryIO | None = None) -> None:
        """Run a command in a pod like `kubectl exec`; input: see `exec_stdin`. Raises BackendError with its stderr on failure."""
        from ropewalk.k8s.api import exec as channels  # noqa: PLC0415 - wsproto takes a tenth of the CPU time of `ropewalk submit`

        params = {"command": list(command), "stdout": "true", "stderr": "true", **({"stdin": "true"} if stdin else {})}
        request = self.transport.upgrade(self.path("Pod", pod, "exec"), params, channels.upgrade_headers())
        with request as (status, answer, stream):
            if status != channels.SWITCHED:
                raise self._error(status, answer)
            try:
                end, errors = channels.run_command(stream, stdin, stdout)
            except channels.ConnectionLostError as error:
                raise ApiAwayError(f"the connection to the API server {self.server} broke ({pod}): {error}") from None
        if end.get("status") != "Success":
            raise BackendError(f"{command[0]} in pod {pod}: {(errors or str(end.get('message', '')))[-500:]}")

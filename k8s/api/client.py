"""A client of the Kubernetes API server, in plain objects; each way in which the server says no is an error of its own.

It is used on a laptop (`ropewalk.k8s.api.kubeconfig.connect`, over httpx2) and in the pods of a run
(`ropewalk.k8s.api.in_cluster`, over
http.client). Every pod imports this module, and at once: so it imports neither.
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
    "Pod": ("api/v1", "pods"),
    "ConfigMap": ("api/v1", "configmaps"),
    "Event": ("api/v1", "events"),
    "Namespace": ("api/v1", "namespaces"),
    "ResourceQuota": ("api/v1", "resourcequotas"),
    "PersistentVolumeClaim": ("api/v1", "persistentvolumeclaims"),
    "ServiceAccount": ("api/v1", "serviceaccounts"),
    "PriorityClass": ("apis/scheduling.k8s.io/v1", "priorityclasses"),
    "SelfSubjectAccessReview": ("apis/authorization.k8s.io/v1", "selfsubjectaccessreviews"),
    "Workload": (KUEUE, "workloads"),
    "LocalQueue": (KUEUE, "localqueues"),
    "ClusterQueue": (KUEUE, "clusterqueues"),
}
GLOBAL = {"Namespace", "PriorityClass", "SelfSubjectAccessReview", "ClusterQueue"}
STRICT = {"fieldValidation": "Strict"}
PLAIN = "application/json"
MERGE = "application/merge-patch+json"


class ApiError(BackendError):
    """The API server did not do what it was asked."""


class ApiAwayError(ApiError, SchedulerAwayError):
    """The API server does not answer, or says that it cannot at present: what was asked may have been done or not."""


class NotFoundError(ApiError):
    """There is no such object, kind or namespace."""


class ConflictError(ApiError):
    """An object of this name exists already, or was changed meanwhile."""


class ForbiddenError(ApiError):
    """The server does not know who asks, or the rights, a quota or a policy do not allow it."""


class RefusedError(ApiError):
    """The API server finds the object invalid."""


class Transport(Protocol):
    """How a request reaches one API server, and in whose name."""

    server: str

    def request(self, method: str, path: str, params: Mapping[str, str], body: Any, content_type: str) -> tuple[int, Any]:
        """Send a request; return the answer's status, and its JSON parsed, or its text where it has none. Raises ApiAwayError."""
        ...


class StreamTransport(Transport, Protocol):
    """A transport that keeps connections open, and can upgrade one to a WebSocket."""

    def close(self) -> None:
        """Close all connections."""
        ...

    def upgrade(
        self, path: str, params: Mapping[str, Any], headers: Mapping[str, str]
    ) -> "AbstractContextManager[tuple[int, Any, NetworkStream]]":
        """Ask for an upgrade; yield the answer's status and content, and the connection. Raises ApiAwayError."""
        ...


class ApiClient:
    """The objects of one namespace of one cluster."""

    login_remedy = "log in again"  # where the server does not know who asks
    rights_remedy = ""  # where it does, and does not allow it

    def __init__(self, transport: Transport, namespace: str) -> None:
        self._transport, self.namespace = transport, namespace

    @property
    def server(self) -> str:
        """The address of the API server."""
        return self._transport.server

    def get(self, kind: str, name: str) -> Object:
        """Read an object. Raises NotFoundError."""
        return self._read(self.path(kind, name))

    def find(self, kind: str, name: str) -> Object | None:
        """Read an object; return None where there is none of this name."""
        with suppress(NotFoundError):
            return self.get(kind, name)
        return None

    def list(self, kind: str, labels: Mapping[str, str] | str = "", fields: str = "") -> Sequence[Object]:
        """List all objects of a kind that have these labels and fields, in one call."""
        selector = labels if isinstance(labels, str) else ",".join(f"{key}={value}" for key, value in labels.items())
        params = {key: value for key, value in (("labelSelector", selector), ("fieldSelector", fields)) if value}
        items: list[Object] = self._read(self.path(kind), params).get("items") or []
        return items

    def create(self, each: Object) -> Object:
        """Create an object; return it as the server has completed it. Raises ConflictError if one of its name exists.

        Raises RefusedError where the server does not know a field: it would leave it out, and with it what the run relies on.
        """
        return self._ask("POST", self.path(each["kind"]), STRICT, each)

    def patch(self, kind: str, name: str, patch: Object, part: str = "") -> Object:
        """Change an object, or a part of it such as its status, by a merge patch."""
        return self._ask("PATCH", self.path(kind, name, part), body=patch, content_type=MERGE)

    def delete(
        self, kind: str, name: str, *, propagation: str = "Background", grace_seconds: int | None = None, uid: str = ""
    ) -> None:
        """Delete an object and what it owns; it is no error if it is gone already, or if another `uid` has its name by now."""
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
        """Read what the API server has at a path, such as `version`."""
        return self._ask("GET", path)

    def groups(self) -> dict[str, str]:
        """The API groups that the server has, each with its preferred version."""
        found = self.raw("apis")["groups"]
        return {each["name"]: each["preferredVersion"]["version"] for each in found}

    def path(self, kind: str, name: str = "", part: str = "") -> str:
        """The path of a kind, of an object, or of a part of an object."""
        base, plural = KINDS[kind]
        place = base if kind in GLOBAL else f"{base}/namespaces/{self.namespace}"
        return "/".join(word for word in (place, plural, name, part) if word)

    def _read(self, path: str, params: Mapping[str, str] | None = None) -> Object:
        """Read a path; where the server does not know the newer version of Kueue's objects, read the older."""
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
        found: Object = answer
        return found

    def _error(self, status: int, answer: Any) -> ApiError:
        """The error that an answer of the API server means."""
        is_object = isinstance(answer, dict)  # else a proxy answers
        said = " ".join(str(answer.get("message") or "").split()) if is_object else " ".join(str(answer).split())[:300]
        reason = str(answer.get("reason") or "") if is_object else ""
        said = (said or f"HTTP {status}") + (f" ({reason})" if reason and reason not in said else "")
        if status == 401:
            return ForbiddenError(f"the API server {self.server} does not know who you are ({said}); {self.login_remedy}")
        if status in (429, 500, 502, 503, 504):
            return ApiAwayError(f"the API server {self.server} cannot answer: {said}")
        kinds = {403: ForbiddenError, 404: NotFoundError, 409: ConflictError, 410: ConflictError}
        remedy = self.rights_remedy if status == 403 else ""
        return kinds.get(status, RefusedError)(f"Kubernetes: {said}{remedy}")


class Kubernetes(ApiClient):
    """One namespace of one cluster, as a person's machine reaches it: commands can be run in pods, too."""

    def __init__(self, transport: StreamTransport, namespace: str) -> None:
        super().__init__(transport, namespace)
        self.transport = transport

    def close(self) -> None:
        """Close all connections to the API server."""
        self.transport.close()

    def execute(self, pod: str, command: Sequence[str], stdin: BinaryIO | None = None, stdout: BinaryIO | None = None) -> None:
        """Run a command in a pod, as kubectl exec does; a command with input must ask for it (see `exec_stdin`).

        Raises BackendError with what the command printed on stderr if it fails.
        """
        from ropewalk.k8s.api import exec as channels  # noqa: PLC0415 - wsproto is a tenth of the CPU time of `ropewalk submit`

        params = {"command": list(command), "stdout": "true", "stderr": "true", **({"stdin": "true"} if stdin else {})}
        request = self.transport.upgrade(self.path("Pod", pod, "exec"), params, channels.upgrade_headers())
        with request as (status, answer, stream):
            if status != channels.SWITCHED:
                raise self._error(status, answer)
            try:
                end, said = channels.run_command(stream, stdin, stdout)
            except channels.BrokenOffError as error:
                raise ApiAwayError(f"the API server {self.server} has broken off ({pod}): {error}") from None
        if end.get("status") != "Success":
            raise BackendError(f"{command[0]} in pod {pod}: {(said or str(end.get('message', '')))[-500:]}")

"""Client of the API server for pods: reads and changes the pods and the Job of their own run with the pod's service account.

Every pod imports this module as it starts, so it uses http.client. The token is read for each request because it is replaced
every hour.
"""

import http.client
import json
import os
import ssl
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from ropewalk.k8s.api.client import ApiAwayError, ApiClient, ForbiddenError, NotFoundError
from ropewalk.k8s.api.objects import Object
from ropewalk.k8s.names import JOB_VARIABLE

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
JOB_LABEL = "batch.kubernetes.io/job-name"
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
ANSWER_SECONDS = 5.0


def server_of(environment: Mapping[str, str]) -> str:
    """Return the address of the API server from the variables that every pod has."""
    host = environment.get("KUBERNETES_SERVICE_HOST", "kubernetes.default.svc")
    return f"https://{f'[{host}]' if ':' in host else host}:{environment.get('KUBERNETES_SERVICE_PORT', '443')}"


class ServiceAccountTransport:
    """Sends each request over its own connection with this pod's service account: a `Transport` of `ropewalk.k8s.api.client`."""

    def __init__(self, server: str, account: Path = ACCOUNT) -> None:
        self.server, self._account = server, account
        self._context: tuple[int, ssl.SSLContext] | None = None  # with the modification time of its CA file

    def request(self, method: str, path: str, params: Mapping[str, str], body: Any, content_type: str) -> tuple[int, Any]:
        """Send a request; return status and content. Raises ApiAwayError, and ForbiddenError if the pod has no token."""
        target = f"/{path}?{urlencode(params)}" if params else f"/{path}"
        address = urlsplit(self.server)
        try:
            token = (self._account / "token").read_text().strip()
            headers = {"Authorization": f"Bearer {token}", "Accept": "application/json", "Content-Type": content_type}
            connection = http.client.HTTPSConnection(
                address.hostname or "", address.port, timeout=ANSWER_SECONDS, context=self._trusted()
            )
            try:
                connection.request(method, target, json.dumps(body) if body is not None else None, headers)
                response = connection.getresponse()
                return response.status, _content(response.read())
            finally:
                connection.close()
        except FileNotFoundError as error:
            raise ForbiddenError(
                f"{error.filename}: this pod has no token; give it a service account, see k8s/manifests/rbac.yaml"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise ApiAwayError(f"the API server {self.server} does not answer: {error or type(error).__name__}") from None

    def _trusted(self) -> ssl.SSLContext:
        """Return the TLS context; rebuilt only if the CA file was replaced, because that takes longer than a request."""
        path = self._account / "ca.crt"
        written = path.stat().st_mtime_ns
        if self._context is None or self._context[0] != written:
            self._context = (written, ssl.create_default_context(cafile=str(path)))
        return self._context[1]


class InClusterApi(ApiClient):
    """A pod's client for the Job and the pods of its run."""

    login_remedy = "give this pod a service account, see k8s/manifests/rbac.yaml"
    rights_remedy = "; apply k8s/manifests/rbac.yaml"

    def __init__(self, environment: Mapping[str, str] = os.environ, account: Path = ACCOUNT) -> None:
        super().__init__(ServiceAccountTransport(server_of(environment), account), environment["POD_NAMESPACE"])
        self.job_name = environment[JOB_VARIABLE]

    def pods(self) -> Sequence[Object]:
        return self.list("Pod", f"{JOB_LABEL}={self.job_name}")

    def pods_of_indexes(self, indexes: Iterable[int]) -> Sequence[Object]:
        return self.list("Pod", f"{JOB_LABEL}={self.job_name},{INDEX_LABEL} in ({','.join(map(str, indexes))})")

    def pod(self, name: str) -> Object | None:
        """Return a pod, or None if it is gone."""
        return self.find("Pod", name)

    def patch_pod_status(self, name: str, status: Object) -> None:
        """Change a pod's status. A pod that is gone is ignored."""
        with suppress(NotFoundError):
            self.patch("Pod", name, {"status": status}, part="status")

    def delete_pod(self, name: str, uid: str, *, at_once: bool = False) -> None:
        """Delete a pod; `at_once` without waiting for its node. A pod that is gone is ignored."""
        self.delete("Pod", name, grace_seconds=0 if at_once else None, uid=uid)

    def job(self) -> Object | None:
        """Return the run's Job, or None if it is gone."""
        return self.find("Job", self.job_name)

    def patch_job(self, patch: Object) -> None:
        self.patch("Job", self.job_name, patch)


def _content(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:  # a proxy has answered
        return content.decode(errors="replace")

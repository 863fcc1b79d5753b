"""The API server as a pod sees it: the pods of its own run, and their Job.

Not k8s.api.client: every pod of a run imports this, and at once; and the token is read anew for each call, since it is
replaced every hour.
"""

import http.client
import json
import os
import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cluster.errors import BackendError

Object = dict[str, Any]

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
ANSWER_SECONDS = 5.0
MERGE = "application/merge-patch+json"
PLAIN = "application/json"


class ApiError(BackendError):
    """The API server does not answer (status 0), or says no."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status

    @property
    def denied(self) -> bool:
        """The pods' service account may not do it."""
        return self.status in {401, 403}


class Inside:
    """What a pod asks of the API server."""

    def __init__(self, environment: Mapping[str, str] = os.environ, account: Path = ACCOUNT) -> None:
        self._host = environment.get("KUBERNETES_SERVICE_HOST", "kubernetes.default.svc")
        self._port = int(environment.get("KUBERNETES_SERVICE_PORT", "443"))
        self._account = account
        self._context: tuple[int, ssl.SSLContext] | None = None  # of the authorities' file as it was written then
        self.namespace = environment["POD_NAMESPACE"]
        self.job_name = environment["ROPEWALK_JOB"]

    def pods(self) -> list[Object]:
        """All pods of the Job."""
        return self.select_pods(f"batch.kubernetes.io/job-name={self.job_name}")

    def pods_of_indexes(self, indexes: Iterable[int]) -> list[Object]:
        """The pods of some indexes of the Job: of a thousand the few that matter."""
        return self.select_pods(f"batch.kubernetes.io/job-name={self.job_name},{INDEX_LABEL} in ({','.join(map(str, indexes))})")

    def select_pods(self, labels: str) -> list[Object]:
        """All pods of these labels."""
        query = quote(labels)
        found: list[Object] = self._call("GET", f"/api/v1/namespaces/{self.namespace}/pods?labelSelector={query}")["items"]
        return found

    def pod(self, name: str) -> Object | None:
        """A pod; None: it is gone."""
        return self._find(f"/api/v1/namespaces/{self.namespace}/pods/{name}")

    def patch_pod_status(self, name: str, status: Object) -> None:
        """Change a pod's status; one that is gone is left alone."""
        try:
            self._call("PATCH", f"/api/v1/namespaces/{self.namespace}/pods/{name}/status", {"status": status})
        except ApiError as error:
            if error.status != 404:
                raise

    def delete_pod(self, name: str, uid: str, *, at_once: bool = False) -> None:
        """Ask a pod to go; `at_once` also where its node is not there to see to it. One that is gone is left alone."""
        options: Object = {"preconditions": {"uid": uid}, **({"gracePeriodSeconds": 0} if at_once else {})}
        try:
            self._call("DELETE", f"/api/v1/namespaces/{self.namespace}/pods/{name}", options)
        except ApiError as error:
            if error.status not in {404, 409}:
                raise

    def job(self) -> Object | None:
        """The run's Job; None: it is gone."""
        return self._find(self._job_path)

    def patch_job(self, patch: Object) -> None:
        """Change it by a merge patch."""
        self._call("PATCH", self._job_path, patch)

    @property
    def _job_path(self) -> str:
        return f"/apis/batch/v1/namespaces/{self.namespace}/jobs/{self.job_name}"

    def _find(self, path: str) -> Object | None:
        try:
            return self._call("GET", path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def _trusted(self) -> ssl.SSLContext:
        """Made anew only where the authorities' file is another: it takes longer than a question."""
        path = self._account / "ca.crt"
        written = path.stat().st_mtime_ns
        if self._context is None or self._context[0] != written:
            self._context = (written, ssl.create_default_context(cafile=str(path)))
        return self._context[1]

    def _call(self, method: str, path: str, body: Object | None = None) -> Object:
        """One question, one answer. Raises ApiError."""
        where = f"the API server {self._host}:{self._port}"
        try:
            token = (self._account / "token").read_text().strip()
            connection = http.client.HTTPSConnection(self._host, self._port, timeout=ANSWER_SECONDS, context=self._trusted())
            headers = {
                "Authorization": f"Bearer {token}",
                "Accept": "application/json",
                "Content-Type": MERGE if method == "PATCH" else PLAIN,
            }
            try:
                connection.request(method, path, json.dumps(body) if body is not None else None, headers)
                response = connection.getresponse()
                content = response.read()
            finally:
                connection.close()
        except FileNotFoundError as error:
            raise ApiError(
                f"{error.filename}: this pod has no token; give it a service account, see k8s/manifests/rbac.yaml", 401
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise ApiError(f"{where} does not answer: {error or type(error).__name__}") from None
        if response.status >= 400:
            remedy = "; apply k8s/manifests/rbac.yaml" if response.status == 403 else ""
            raise ApiError(f"{where} says {response.status} to {method} {path}: {_message(content)}{remedy}", response.status)
        found: Object = json.loads(content)
        return found


def _message(content: bytes) -> str:
    try:
        return str(json.loads(content).get("message") or "")[:300]
    except (ValueError, AttributeError):  # a proxy answers
        return content[:100].decode(errors="replace")

"""The API server as tests ask it: over a connection that stays open, as a process of kubectl costs more than most tests do."""

from pathlib import Path
from typing import Any

import httpx2

from ropewalk.k8s.api.client import KINDS, KUEUE
from ropewalk.k8s.api.http_transport import HttpTransport
from ropewalk.k8s.api.kubeconfig import connect
from ropewalk.k8s.profile import K8sProfile

RBAC = "apis/rbac.authorization.k8s.io/v1"
# kind: (API group and version, plural)
MORE_KINDS = {
    "PersistentVolume": ("api/v1", "persistentvolumes"),
    "Role": (RBAC, "roles"),
    "RoleBinding": (RBAC, "rolebindings"),
    "ResourceFlavor": (KUEUE, "resourceflavors"),
    "WorkloadPriorityClass": (KUEUE, "workloadpriorityclasses"),
}
NOW = {"gracePeriodSeconds": 0, "propagationPolicy": "Background"}
APPLY = {"fieldManager": "tests", "force": "true"}
TRIES = 2  # a connection that was kept open dies with the API server


class Rest:
    """Objects by their kind, as an administrator."""

    def __init__(self, kubeconfig: Path) -> None:
        transport = connect(K8sProfile(kubeconfig=str(kubeconfig))).transport
        assert isinstance(transport, HttpTransport)
        self.client = transport.client

    def items(self, kind: str, namespace: str | None = None, selector: str = "") -> list[dict[str, Any]]:
        """The objects of a kind that a selector finds."""
        answer = self._ask("GET", path_of(kind, namespace), params={"labelSelector": selector} if selector else {})
        return [{"kind": kind, **each} for each in answer.json()["items"]]

    def apply(self, *objects: dict[str, Any], namespace: str | None = None) -> None:
        """Create objects, or change them."""
        for each in objects:
            about = each["metadata"]
            path = path_of(each["kind"], about.get("namespace", namespace), about["name"], each["apiVersion"])
            more = {
                "params": {"fieldManager": "tests", "force": "true"},
                "headers": {"Content-Type": "application/apply-patch+yaml"},
            }
            self._ask("PATCH", path, json=each, **more)

    def delete(self, kind: str, namespace: str | None = None, name: str = "") -> None:
        """Delete an object, or all of a kind in a namespace, at once and with what belongs to it; it may be gone already."""
        self._ask("DELETE", path_of(kind, namespace, name), json=NOW, also=404)

    def close(self) -> None:
        """Hang up."""
        self.client.close()

    def _ask(self, method: str, path: str, *, also: int = 200, **more: Any) -> httpx2.Response:
        for left in reversed(range(TRIES)):
            try:
                answer = self.client.request(method, path, **more)
                break
            except httpx2.TransportError:
                if not left:
                    raise
        assert answer.is_success or answer.status_code == also, f"{method} {path}: {answer.text}"
        return answer


def path_of(kind: str, namespace: str | None = None, name: str = "", version: str = "") -> str:
    """The path of an object, or of all of a kind; in a version of its API, or the one that Ropewalk speaks."""
    group, plural = {**KINDS, **MORE_KINDS}[kind]
    if "/" in version:
        group = f"apis/{version}"
    return "/".join(["", group, *(["namespaces", namespace] if namespace else []), plural, *([name] if name else [])])

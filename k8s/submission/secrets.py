"""Secrets of `ropewalk secret` in a cluster: one Secret of the namespace, whose keys are their names."""

from base64 import b64encode
from collections.abc import Sequence

from ropewalk.cluster.secrets.store import check_value
from ropewalk.k8s.api.client import ConflictError, Kubernetes, NotFoundError
from ropewalk.k8s.api.objects import Object
from ropewalk.k8s.names import COMMON_LABELS


class SecretObject:
    """A store in a Secret. Several people may use it at the same time, since each change concerns one key."""

    def __init__(self, kube: Kubernetes, name: str) -> None:
        self._kube, self._name = kube, name

    @property
    def location(self) -> str:
        return f"Secret {self._name} of namespace {self._kube.namespace}"

    def names(self) -> Sequence[str]:
        secret = self._kube.find("Secret", self._name) or {}
        return sorted(secret.get("data") or {})

    def set(self, name: str, value: str) -> None:
        data = {name: b64encode(check_value(value).encode()).decode()}
        try:
            self._kube.patch("Secret", self._name, {"data": data})
        except NotFoundError:
            metadata = {"name": self._name, "labels": COMMON_LABELS}
            secret: Object = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": data}
            try:
                self._kube.create(secret)
            except ConflictError:  # somebody else was faster
                self._kube.patch("Secret", self._name, {"data": data})

    def remove(self, name: str) -> bool:
        if name not in self.names():
            return False
        self._kube.patch("Secret", self._name, {"data": {name: None}})
        return True

"""The keys of a Kubernetes cluster in the profile file, checked."""

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ropewalk.cluster.config import Section, check_variables
from ropewalk.k8s.names import OWN_VARIABLES

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_DEVICE = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")


class Mount(Section):
    """One more volume in every pod, for data."""

    claim: str = Field(description="the PersistentVolumeClaim")
    path: str = Field(description="where pods see it")
    read_only: bool = Field(default=True, description="pods cannot write to it")

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: str) -> str:
        return _absolute_path(path)


class Toleration(Section):
    """A taint of nodes that pods tolerate, in Kubernetes' own keys."""

    key: str | None = Field(default=None, description="the taint's key; unset: every key")
    operator: Literal["Exists", "Equal"] = Field(default="Equal", description="whether the value must be equal")
    value: str | None = Field(default=None, description="the taint's value")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(default=None, description="unset: all")
    tolerationSeconds: int | None = Field(default=None, ge=0, description="how long, of NoExecute")  # noqa: N815 - Kubernetes'


class K8sProfile(Section):
    """One Kubernetes cluster, seen as a namespace, a queue, an image and a volume."""

    context: str | None = Field(default=None, description="context of the kubeconfig; unset: the current one, or in-cluster")
    kubeconfig: str | None = Field(default=None, description="the kubeconfig; unset: $KUBECONFIG, else ~/.kube/config")
    namespace: str | None = Field(default=None, description="unset: the context's")
    image: str = Field(default="ropewalk:latest", description="the image of all pods; k8s/image/Dockerfile builds one")
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = Field(default="IfNotPresent", description="when to pull it")
    image_pull_secrets: tuple[str, ...] = Field(default=(), description="Secrets with which to pull it")
    python: str = Field(default="python", description="Python in the image")
    claim: str = Field(default="runs", description="the ReadWriteMany PersistentVolumeClaim in which runs live")
    claim_path: str = Field(default="/runs", description="where pods see it")
    runs: str | None = Field(default=None, description="where this machine sees the claim's files; unset: it does not")
    mounts: tuple[Mount, ...] = Field(default=(), description="more claims in every pod: [{claim, path, read_only}]")
    queue: str | None = Field(default=None, description="Kueue's LocalQueue")
    queue_priority: str | None = Field(default=None, description="Kueue's WorkloadPriorityClass")
    priority_class: str | None = Field(default=None, description="PriorityClass of the pods")
    service_account: str | None = Field(default=None, description="the pods' account; k8s/manifests/rbac.yaml makes `ropewalk`")
    gpu: str = Field(default="nvidia.com/gpu", description="the resource that resources.gpus counts, such as amd.com/gpu")
    devices: dict[str, int] = Field(default={}, description="further resources a node, such as rdma/hca: 1")
    node_selector: dict[str, str] = Field(default={}, description="labels that nodes must have")
    tolerations: tuple[Toleration, ...] = Field(default=(), description="taints of nodes that pods tolerate")
    environment: dict[str, str] = Field(default={}, description="variables to set; no secrets")
    secrets: tuple[str, ...] = Field(default=(), description="Secrets whose keys become variables, such as WANDB_API_KEY")
    user: int = Field(default=1000, ge=1, description="uid and gid of all processes; the claim's files belong to it")
    keep_minutes: float = Field(default=1440, ge=1, description="how long a Job that is over stays, for kubectl to look at")
    pod: dict[str, Any] = Field(default={}, description="a strategic-merge patch of the pods: {spec: {...}, metadata: {...}}")

    @model_validator(mode="before")
    @classmethod
    def _no_rayjobs(cls, values: Any) -> Any:
        if isinstance(values, dict) and "ray" in values:
            said = "every run is an Indexed Job, which starts its own Ray; take `ray` out of the profile, KubeRay is not needed"
            raise ValueError(f"ray: {values['ray']}: {said}")
        return values

    @field_validator("namespace", "claim", "queue", "queue_priority", "priority_class", "service_account")
    @classmethod
    def _a_name(cls, name: str | None) -> str | None:
        if name is not None and not _NAME.fullmatch(name):
            raise ValueError("must be a valid Kubernetes name: lower-case letters, digits, - and .")
        return name

    @field_validator("claim_path")
    @classmethod
    def _absolute(cls, path: str) -> str:
        return _absolute_path(path)

    @field_validator("devices")
    @classmethod
    def _device_names(cls, devices: dict[str, int]) -> dict[str, int]:
        for name in devices:
            if not _DEVICE.fullmatch(name):
                raise ValueError(f"{name!r} is not a resource name of Kubernetes, such as rdma/hca or nvidia.com/mig-1g.5gb")
        return devices

    @field_validator("gpu")
    @classmethod
    def _gpu_name(cls, name: str) -> str:
        if not _DEVICE.fullmatch(name):
            raise ValueError("must be a resource name of Kubernetes, such as nvidia.com/gpu")
        return name

    @field_validator("environment")
    @classmethod
    def _no_secrets(cls, values: dict[str, str]) -> dict[str, str]:
        check_variables(values, "manifests are files; put it into a Secret: secrets")
        if own := sorted(OWN_VARIABLES & set(values)):
            raise ValueError(f"variable {own[0]} is set by the manifest; take it out of environment")
        return values

    @field_validator("pod")
    @classmethod
    def _a_pod(cls, patch: dict[str, Any]) -> dict[str, Any]:
        foreign = sorted(set(patch) - {"metadata", "spec"})
        if foreign:
            raise ValueError(f"{foreign[0]!r} is no part of a pod; a patch has spec, metadata, or both")
        return patch


def _absolute_path(path: str) -> str:
    if not path.startswith("/") or path.rstrip("/") == "":
        raise ValueError("must be an absolute path other than /")
    return path.rstrip("/")

"""Configuration keys of a Kubernetes cluster in the profile file."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from ropewalk.cluster.data_mounts import check_mount_name
from ropewalk.cluster.secrets.plain_text import check_variables
from ropewalk.cluster.section import Section
from ropewalk.k8s.names import RESERVED_VARIABLES

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_DEVICE = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")


def _absolute_path(path: str) -> str:
    if not path.startswith("/") or path.rstrip("/") == "":
        raise ValueError("must be an absolute path other than /")
    return path.rstrip("/")


AbsolutePath = Annotated[str, AfterValidator(_absolute_path)]


class Mount(Section):
    """A directory for data in every pod: an additional volume, or with a name alone a folder that pods have anyway."""

    name: Annotated[str, AfterValidator(check_mount_name)] | None = Field(default=None, description="jobs name it as data://NAME")
    claim: str | None = Field(
        default=None, description="PersistentVolumeClaim; unset: a folder of the image or of another volume"
    )
    path: AbsolutePath = Field(description="mount path in pods")
    read_only: bool = Field(default=True, description="mount it read-only")

    @model_validator(mode="after")
    def _named(self) -> "Mount":
        if self.claim is None and self.name is None:
            raise ValueError("needs `claim`, a PersistentVolumeClaim, or `name`, for jobs")
        return self


class Toleration(Section):
    """A node taint that pods tolerate, with the keys of Kubernetes."""

    key: str | None = Field(default=None, description="key of the taint; default: every key")
    operator: Literal["Exists", "Equal"] = Field(default="Equal", description="`Equal` compares the value, `Exists` does not")
    value: str | None = Field(default=None, description="value of the taint")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="default: all effects"
    )
    tolerationSeconds: int | None = Field(default=None, ge=0, description="duration, for NoExecute")  # noqa: N815 - Kubernetes'


class K8sProfile(Section):
    """A Kubernetes cluster: namespace, queue, image, volume, and settings of all pods."""

    context: str | None = Field(default=None, description="context of the kubeconfig; default: the current one, or in-cluster")
    kubeconfig: str | None = Field(default=None, description="kubeconfig file; default: $KUBECONFIG, else ~/.kube/config")
    namespace: str | None = Field(default=None, description="namespace; default: the context's")
    image: str = Field(default="ropewalk:latest", description="image of all pods; k8s/image/Dockerfile builds one")
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = Field(
        default="IfNotPresent", description="when to pull the image"
    )
    image_pull_secrets: tuple[str, ...] = Field(default=(), description="Secrets for pulling the image")
    python: str = Field(default="python", description="Python in the image")
    claim: str = Field(default="runs", description="ReadWriteMany PersistentVolumeClaim that holds the runs directory")
    claim_path: AbsolutePath = Field(default="/runs", description="mount path of the claim in pods")
    runs: str | None = Field(default=None, description="mount path of the claim on this machine; unset: not mounted here")
    mounts: tuple[Mount, ...] = Field(
        default=(),
        description="further claims in every pod: [{claim, path, read_only}], or with names for jobs: {NAME: {claim, path}}",
    )
    queue: str | None = Field(default=None, description="Kueue's LocalQueue")
    queue_priority: str | None = Field(default=None, description="Kueue's WorkloadPriorityClass")
    priority_class: str | None = Field(default=None, description="PriorityClass of the pods")
    service_account: str | None = Field(
        default=None, description="service account of the pods; k8s/manifests/rbac.yaml creates `ropewalk`"
    )
    gpu: str = Field(default="nvidia.com/gpu", description="resource that resources.gpus counts, such as amd.com/gpu")
    devices: dict[str, int] = Field(default={}, description="further resources per node, such as rdma/hca: 1")
    node_selector: dict[str, str] = Field(default={}, description="node labels that pods require")
    tolerations: tuple[Toleration, ...] = Field(default=(), description="node taints that pods tolerate")
    environment: dict[str, str] = Field(default={}, description="environment variables; no secrets")
    secrets: tuple[str, ...] = Field(default=(), description="Secrets whose keys become variables, such as WANDB_API_KEY")
    secret_store: str = Field(default="ropewalk-secrets", description="Secret in which `ropewalk secret` keeps values")
    user: int = Field(default=1000, ge=1, description="uid and gid of all processes and of the claim's files")
    keep_minutes: float = Field(default=1440, ge=1, description="time that finished Jobs stay in the cluster")
    pod: dict[str, Any] = Field(default={}, description="strategic-merge patch of the pods: {spec: {...}, metadata: {...}}")

    @model_validator(mode="before")
    @classmethod
    def _no_rayjobs(cls, values: Any) -> Any:
        if isinstance(values, dict) and "ray" in values:
            message = "every run is an Indexed Job that starts its own Ray; remove `ray` from the profile, KubeRay is not needed"
            raise ValueError(f"ray: {values['ray']}: {message}")
        return values

    @field_validator("mounts", mode="before")
    @classmethod
    def _by_name(cls, mounts: Any) -> Any:
        if not isinstance(mounts, dict):
            return mounts
        keys = {name: {"path": mount} if isinstance(mount, str) else mount for name, mount in mounts.items()}
        return [{"name": name, **mount} if isinstance(mount, dict) else mount for name, mount in keys.items()]

    @field_validator("namespace", "claim", "queue", "queue_priority", "priority_class", "service_account", "secret_store")
    @classmethod
    def _valid_name(cls, name: str | None) -> str | None:
        if name is not None and not _NAME.fullmatch(name):
            raise ValueError("must be a valid Kubernetes name: lower-case letters, digits, - and .")
        return name

    @field_validator("devices")
    @classmethod
    def _device_names(cls, devices: dict[str, int]) -> dict[str, int]:
        for name in devices:
            if not _DEVICE.fullmatch(name):
                raise ValueError(f"{name!r} is not a Kubernetes resource name, such as rdma/hca or nvidia.com/mig-1g.5gb")
        return devices

    @field_validator("gpu")
    @classmethod
    def _gpu_name(cls, name: str) -> str:
        if not _DEVICE.fullmatch(name):
            raise ValueError("must be a Kubernetes resource name, such as nvidia.com/gpu")
        return name

    @field_validator("environment")
    @classmethod
    def _no_secrets(cls, values: dict[str, str]) -> dict[str, str]:
        check_variables(values, "manifests are stored as files; a job's key secrets names it after `ropewalk secret set NAME`")
        if reserved := sorted(RESERVED_VARIABLES & set(values)):
            raise ValueError(f"variable {reserved[0]} is set by the manifest; remove it from environment")
        return values

    @field_validator("pod")
    @classmethod
    def _valid_patch(cls, patch: dict[str, Any]) -> dict[str, Any]:
        foreign = sorted(set(patch) - {"metadata", "spec"})
        if foreign:
            raise ValueError(f"{foreign[0]!r} is not part of a pod; a patch has spec, metadata, or both")
        return patch

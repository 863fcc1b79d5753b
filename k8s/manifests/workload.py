"""Which kind of object carries a run: an Indexed Job, or for the ray engine a RayJob where KubeRay is there to take it."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cluster.backends.submission import submission_details
from cluster.config import Resources
from cluster.errors import BackendError, RopewalkError
from cluster.run.directory import RunDir
from cluster.spec import Engine
from k8s.api.client import ForbiddenError, Kubernetes, NotFoundError, Object
from k8s.manifests.job import OURS, ROLE_LABEL, RUN_LABEL, name_of, render_objects
from k8s.profile import K8sProfile
from k8s.rayjob import KIND, rayjob_name, render_rayjob, seen_as_job, skeleton
from k8s.status.pending_reasons import seconds_of

JOB = "Job"
KEY = "ray in the cluster's profile"
# KubeRay makes no other head as long as the dead one is there, and the pods that would declare it dead are the workers
ALONE = "a single-pod RayJob is not replaced when its node dies; set `ray: rayjob` in the cluster's profile to force one"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A kind of object, and why it is this one."""

    kind: str
    why: str


def shape_of(
    engine: Engine, resources: Resources, profile: K8sProfile, connect: Callable[[], Kubernetes], *, held: bool = False
) -> Shape:
    """What carries runs of an engine; those that are `held` wait for their gate, which lets only Jobs go."""
    if engine is not Engine.RAY or held:
        return Shape(kind=JOB, why="only runs of the ray engine that wait for no other are RayJobs")
    if resources.nodes.most == 1 and profile.ray is None:
        return Shape(kind=JOB, why=ALONE)
    return ray_shape(profile, connect)


def ray_shape(profile: K8sProfile, connect: Callable[[], Kubernetes]) -> Shape:
    """What carries runs of the ray engine: as the profile says, else by asking the cluster whether it would take a RayJob."""
    if profile.ray is not None:
        return Shape(kind=KIND if profile.ray == "rayjob" else JOB, why=f"{KEY} says {profile.ray}")
    try:
        kube = connect()
        probe = skeleton()
        probe["metadata"] |= {"name": "ropewalk-probe", "namespace": kube.namespace}
        kube.try_create(probe)
    except NotFoundError:
        return Shape(kind=JOB, why="there is no KubeRay")
    except ForbiddenError as error:
        return Shape(kind=JOB, why=f"KubeRay may be there, but: {error}")
    except RopewalkError as error:  # it does not answer, or is a KubeRay without token authentication
        return Shape(kind=JOB, why=str(error))
    return Shape(kind=KIND, why=f"KubeRay is there; {KEY} may say indexed")


def render(
    run: RunDir, resources: Resources, profile: K8sProfile, number: int = 1, *, kind: str = JOB, held: bool = False
) -> list[Object]:
    """All objects of a submission, in the order in which they are created; the first owns the others."""
    if kind == KIND:
        return render_rayjob(run, resources, profile, number)
    return render_objects(run, resources, profile, number, held=held)


def name_as(kind: str, run: RunDir, number: int) -> str:
    """What the first of these objects is called."""
    return rayjob_name(run.id, number) if kind == KIND else name_of(run.id, number)


def carrier_of(run: RunDir) -> tuple[str, str]:
    """Kind and name of what the newest submission of a run has created."""
    details = submission_details(run)
    return str(details.get("kind") or JOB), str(details.get("name"))


def find_carrier(kube: Kubernetes, run: RunDir) -> Object:
    """It, as a Job. Raises NotFoundError."""
    kind, name = carrier_of(run)
    found = kube.get(kind, name)
    return seen_as_job(found) if kind == KIND else found


def forget_long_over(kube: Kubernetes, profile: K8sProfile, root: Path) -> None:
    """Delete RayJobs of runs below `root` that ended long ago: KubeRay, other than Kubernetes with Jobs, keeps them for ever."""
    ours = ",".join(f"{key}={value}" for key, value in {**OURS, ROLE_LABEL: "run"}.items())
    with suppress(BackendError):  # the next submission does it
        for rayjob in kube.list(KIND, ours):
            ended = seconds_of((rayjob.get("status") or {}).get("endTime"))
            old = ended and time.time() - ended > profile.keep_minutes * 60
            if old and (root / rayjob["metadata"]["labels"][RUN_LABEL]).is_dir():
                kube.delete(KIND, rayjob["metadata"]["name"])

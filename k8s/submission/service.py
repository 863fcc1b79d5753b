"""Put a Service in front of a run that answers requests; it goes with the run's newest Job."""

from ropewalk.k8s.api.client import Kubernetes
from ropewalk.k8s.api.objects import Object
from ropewalk.k8s.manifests.job import owned_by


def put_service(kube: Kubernetes, service: Object, job: Object) -> None:
    """Create the Service, or make one of an earlier submission belong to this Job: its name stays the same. May be repeated."""
    mine = owned_by(service, job)
    if kube.find("Service", service["metadata"]["name"]) is None:
        kube.create(mine)
    else:
        kube.patch(
            "Service", service["metadata"]["name"], {"metadata": mine["metadata"], "spec": {"ports": service["spec"]["ports"]}}
        )

"""See to it that a RayJob's pods on nodes that do not answer hold nobody up.

Kubernetes keeps such a pod until its node is back, and KubeRay makes no other one as long as it is there. So the head looks
after the workers, and workers after the head: one that Kubernetes has given up, and whose Ray cannot be reached, is deleted for
good. If it is only cut off, it finds the run carried by another, and the fence keeps it from writing. The only pod of a RayJob
has nobody to do so: runs of one pod are RayJobs only where the cluster's profile says so.
"""

import logging
import os
import socket
import threading
import time

from k8s.api.in_cluster import ApiError, Inside
from k8s.runtime.pod_status import Object, over
from k8s.runtime.protocol import LOST_SECONDS

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
DENIED_SECONDS = 60.0  # between two questions where the API server says no
CONNECT_SECONDS = 1.0


class Burial(threading.Thread):
    """Looks after pods of one kind (head or worker), known by the port at which their Ray answers."""

    def __init__(self, api: Inside, kind: str, port: int) -> None:
        super().__init__(name="burial", daemon=True)
        self._api, self._port = api, port
        self._labels = f"ray.io/cluster={os.environ.get('RAY_CLUSTER_NAME', '')},ray.io/node-type={kind}"
        self._silent_since: dict[str, float] = {}  # by uid
        self._told = False

    def run(self) -> None:
        """As long as this process lives."""
        pause = LOOK_SECONDS
        while True:
            time.sleep(pause)
            pause = LOOK_SECONDS
            try:
                self._look()
            except ApiError as error:
                if not self._told:
                    log.warning("a pod on a dead node may hold the run up: %s", error)
                self._told, pause = True, DENIED_SECONDS if error.denied else LOOK_SECONDS

    def _look(self) -> None:
        silent = {}
        for pod in self._api.select_pods(self._labels):
            uid = pod["metadata"]["uid"]
            if "deletionTimestamp" not in pod["metadata"] or over(pod) or self._answers(pod):
                continue
            silent[uid] = self._silent_since.get(uid, time.monotonic())
            if time.monotonic() - silent[uid] > LOST_SECONDS:
                name = pod["metadata"]["name"]
                log.warning("pod %s on node %s is declared dead", name, pod["spec"].get("nodeName"))
                self._api.delete_pod(name, uid, at_once=True)
        self._silent_since = silent

    def _answers(self, pod: Object) -> bool:
        try:
            socket.create_connection((pod["status"].get("podIP", ""), self._port), timeout=CONNECT_SECONDS).close()
        except ConnectionRefusedError:  # the pod lives: it is leaving in order
            return True
        except OSError:
            return False
        return True

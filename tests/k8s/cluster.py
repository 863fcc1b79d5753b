"""A cluster to test on, namespaces in it, and how it is broken and mended. Where one is: lab.py and outside.py."""

import os
import secrets
import subprocess
import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from ropewalk.cluster.run.directory import CODE_FOLDER
from ropewalk.jobs.runs.submit.snapshot import take_snapshot
from tests.k8s.rest import Rest
from tests.patience import Patience, until

ROOT = Path(__file__).resolve().parents[2]
SETTLE_SECONDS = 120.0  # nodes and controllers look again after 30 s at most, but each for several things
REMEDY = (
    "needs a Kubernetes cluster: as root, a kube-lab.sh where ROPEWALK_KUBE_LAB names one; or KUBECONFIG_TEST, which names the"
    " kubeconfig of one made by kind, minikube or k3d, with KUBECONFIG_TEST_RUNS (a folder of this machine that all its nodes"
    " mount at the same path, such as kind's extraMounts) and KUBECONFIG_TEST_IMAGE (see k8s/image/Dockerfile)"
)


@dataclass
class Cluster:
    """A cluster that answers kubectl, and how its pods run this checkout."""

    kubeconfig: Path
    shared: Path  # a folder that this machine and all nodes see under the same path
    image: str
    python: str
    environment: dict[str, str] = field(default_factory=dict)
    has_checkout: bool = True  # its pods see this checkout
    folder: Path | None = None  # the lab's
    script: Path | None = None
    path: str = ""  # where kubectl is
    namespaces: list["Namespace"] = field(default_factory=list)
    broken: set[tuple[str, int]] = field(default_factory=set)  # (what mends it, node)
    api_was_away: bool = False

    def kubectl(self, *arguments: str, stdin: str | None = None, seconds: float = 60) -> str:
        """Run kubectl; what it printed. Raises with what it said."""
        environment = {**os.environ, "KUBECONFIG": str(self.kubeconfig), "PATH": f"{self.path}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["kubectl", *arguments], input=stdin, env=environment, capture_output=True, text=True, timeout=seconds, check=False
        )
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    @cached_property
    def rest(self) -> Rest:
        """Client for the namespace's objects."""
        return Rest(self.kubeconfig)

    def close(self) -> None:
        """Hang up."""
        self.rest.close()

    def need(self, group: str, name: str) -> None:
        """Skip where an operator is not installed."""
        if group not in self.kubectl("api-versions"):
            pytest.skip(f"needs {name} in the cluster; install it there, or test on the lab, which has it")

    def namespace(self, *, level: str = "restricted") -> "Namespace":
        """A new one, whose pods see a folder of their own."""
        namespace = Namespace(self, f"t{secrets.token_hex(3)}", level)
        self.namespaces.append(namespace)
        namespace.create()
        return namespace

    def forget_namespaces(self) -> None:
        """Delete all that were made, and wait for nothing but the request."""
        while self.namespaces:
            self.namespaces.pop().remove()

    # --- disturbances, of the lab alone

    def lab(self, *arguments: str) -> None:
        """A command of the lab."""
        assert self.script is not None, "only a cluster of the lab may be broken"
        assert self.folder is not None
        command, *rest = arguments
        done = subprocess.run(
            [self.script, command, self.folder, *rest],
            env={**os.environ, "TMPDIR": tempfile.gettempdir()},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def kill_node(self, node: str) -> None:
        """Kill all of a node's processes, which closes their connections, then take it off the network.

        `kill-node` alone does both at once: whether the others hear of the closing then is chance.
        """
        assert self.folder is not None, "only a cluster of the lab may be broken"
        init = psutil.Process(int((self.folder / f"run/{node}.init").read_text()))  # PID 1 of the node: all others go with it
        init.kill()
        init.wait(Patience.STEP.value)
        self.lab("kill-node", node.removeprefix("node"))
        self.broken.add(("start-node", int(node.removeprefix("node"))))

    def cut_node(self, node: str) -> None:
        """Unplug its network: its pods run on, unseen."""
        self.lab("cut-node", node.removeprefix("node"))
        self.broken.add(("heal-node", int(node.removeprefix("node"))))

    def stop_api(self) -> None:
        """The API server goes away."""
        self.lab("stop-api")
        self.broken.add(("start-api", 0))
        self.api_was_away = True

    def mend(self) -> None:
        """Everything that was broken is well again."""
        if not self.broken:
            return
        for remedy, node in sorted(self.broken, key=lambda each: each[1]):
            self.lab(remedy, *([str(node)] if node else []))
        self.broken.clear()
        until(lambda: all(map(_ready, self.rest.items("Node", selector="!type"))), Patience.STEP)

    def settle(self) -> None:
        """Wait until controllers, scheduler and every node have noticed that the API server is back, which
        they look for at growing intervals. A Job of one pod a node does nothing.
        """
        if not self.api_was_away:
            return
        nodes = len(self.rest.items("Node", selector="!type"))
        apart = {"labelSelector": {"matchLabels": {"job-name": "settle"}}, "topologyKey": "kubernetes.io/hostname"}
        affinity = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}}
        containers = [{"name": "main", "image": self.image, "command": ["true"]}]
        pod = {"restartPolicy": "Never", "affinity": affinity, "containers": containers}
        spec = {"completions": nodes, "parallelism": nodes, "backoffLimit": 100, "template": {"spec": pod}}
        about = {"name": "settle", "namespace": "default"}
        self.rest.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": about, "spec": spec})
        self.kubectl(
            "wait", "--for=condition=complete", "job/settle", f"--timeout={SETTLE_SECONDS:.0f}s", seconds=SETTLE_SECONDS + 30
        )
        self.rest.delete("Job", "default", "settle")
        self.api_was_away = False


@dataclass
class Namespace:
    """A namespace with a volume of its own, and what a run needs to live in it."""

    cluster: Cluster
    name: str
    level: str
    code: dict[str, str] = field(default_factory=dict)  # for the records of runs: where it lies on the volume, if it comes so

    @property
    def runs(self) -> Path:
        """The volume's folder, as this machine sees it."""
        return self.cluster.shared / self.name

    def create(self) -> None:
        """Make it, with volume, claim and the Role of k8s/manifests/rbac.yaml."""
        self.runs.mkdir()
        self.runs.chmod(0o777)
        labels = {"pod-security.kubernetes.io/enforce": self.level}
        size = {"storage": "1Gi"}
        mode = {"accessModes": ["ReadWriteMany"], "storageClassName": "test"}
        volume = {"capacity": size, **mode, "hostPath": {"path": str(self.runs)}, "persistentVolumeReclaimPolicy": "Retain"}
        # a claim that names its volume, or comes before the controller knows that, may be bound at its next round, 15 s later
        volume["claimRef"] = {"namespace": self.name, "name": "runs"}
        claim = {"resources": {"requests": size}, **mode}
        self.cluster.rest.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.name, "labels": labels}},
            {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": self.name}, "spec": volume},
        )
        until(lambda: self._phase("PersistentVolume", name=self.name) == "Available", Patience.START)
        self.cluster.rest.apply(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": "runs", "namespace": self.name},
                "spec": claim,
            },
        )
        self.cluster.rest.apply(*yaml.safe_load_all((ROOT / "k8s/manifests/rbac.yaml").read_text()), namespace=self.name)
        # a pod that the scheduler sees before the volume waits until that looks at all pods again, minutes later
        until(lambda: self._phase("PersistentVolumeClaim", self.name, name="runs") == "Bound", Patience.START)
        if not self.cluster.has_checkout:
            self.code = {"snapshot": str(take_snapshot(ROOT, self.runs)[0]), "folder": ""}
            (self.runs / CODE_FOLDER).chmod(0o777)  # pods unpack there what comes without the volume

    def _phase(self, kind: str, namespace: str = "", *, name: str) -> str:
        objects = self.cluster.rest.items(kind, namespace)
        return next(str(each.get("status", {}).get("phase", "")) for each in objects if each["metadata"]["name"] == name)

    def remove(self) -> None:
        """Delete it, its volume and its folder; pods of it are killed."""
        for kind in ("Job", "Pod"):
            self.cluster.rest.delete(kind, self.name)
        self.cluster.rest.delete("Namespace", name=self.name)
        self.cluster.rest.delete("PersistentVolume", name=self.name)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """kubectl in this namespace."""
        return self.cluster.kubectl("--namespace", self.name, *arguments, stdin=stdin)

    def items(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        """Objects of a kind in the namespace."""
        return self.cluster.rest.items(kind, self.name, selector)

    def options(self, **more: Any) -> dict[str, Any]:
        """A cluster profile's keys for it."""
        variables = {
            "kubeconfig": str(self.cluster.kubeconfig),
            "namespace": self.name,
            "image": self.cluster.image,
            "python": self.cluster.python,
            "claim": "runs",
            "claim_path": "/runs",
            "runs": str(self.runs),
            "service_account": "ropewalk",
            "environment": {**self.cluster.environment, "OMP_NUM_THREADS": "1"},
            "user": os.geteuid() or 1000,  # so that both may write what the other has made
        }
        return {**variables, **more}

    def pods(self) -> list[dict[str, Any]]:
        """All pods, by index, the newest last."""
        return sorted(self.items("Pod"), key=lambda pod: (_index(pod), pod["metadata"]["creationTimestamp"]))

    def pod(self, index: int) -> dict[str, Any]:
        """The live pod of an index."""
        return next(p for p in self.pods() if _index(p) == index and p["status"]["phase"] == "Running" and _stays(p))

    def job(self) -> dict[str, Any]:
        """The only Job of the namespace."""
        return self.items("Job")[0]


def _index(pod: dict[str, Any]) -> int:
    return int(pod["metadata"].get("annotations", {}).get("batch.kubernetes.io/job-completion-index", -1))


def _stays(pod: dict[str, Any]) -> bool:
    return "deletionTimestamp" not in pod["metadata"]


def _ready(node: dict[str, Any]) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"]["conditions"])

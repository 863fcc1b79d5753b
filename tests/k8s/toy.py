"""Toy runs on a real Kubernetes cluster, and a look at what became of them."""

from typing import Any

from ropewalk.cluster.backends.base import BackendState, Profile
from ropewalk.cluster.config import Resources
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_lines
from ropewalk.cluster.spec import Outcome
from ropewalk.k8s.backend import K8sBackend
from tests.k8s.cluster import Namespace
from tests.patience import Patience, until
from tests.slurm.toy import finish, said


class KubeToy:
    """A run of one of tests/fakes/toy.py's entries in a namespace."""

    def __init__(
        self,
        namespace: Namespace,
        entry: str = "tick",
        engine: str = "process",
        *,
        profile: dict[str, Any] | None = None,
        resources: dict[str, Any] | None = None,
        submit: bool = True,
        **config: Any,
    ) -> None:
        self.namespace = namespace
        self.backend = K8sBackend(Profile(name="lab", backend="k8s", options=namespace.options(**(profile or {}))))
        self.resources = Resources.model_validate({"grace_seconds": 20, "cpus": 1, **(resources or {})})
        record = {
            "job": "toy",
            "entry": entry if ":" in entry else f"tests.fakes.toy:{entry}",
            "engine": engine,
            "preload": ["torch"] if engine == "ranks" else [],
            "sidecars": [],
            "config": config,
            "resources": self.resources.model_dump(mode="json"),
            "cluster": "lab",
            "code": namespace.code,
        }
        self.run = RunDir.create("toy", record, namespace.runs)
        if submit:
            self.backend.submit(self.run, self.resources)

    def close(self) -> None:
        """Hang up."""
        if "kube" in vars(self.backend):
            self.backend.kube.close()

    @property
    def state(self) -> BackendState:
        return self.backend.states([self.run])[self.run.id]

    def steps(self) -> list[int]:
        return [line["step"] for line in self.run.read_metrics()]

    def world(self) -> int:
        return int((self.run.read_metrics() or [{"world": 0}])[-1]["world"])

    def reach(self, step: int, patience: Patience = Patience.STEP) -> None:
        try:
            until(lambda: max(self.steps(), default=0) >= step, patience)
        except AssertionError:
            raise AssertionError(self.said()) from None

    def reach_attempt(self, attempt: int, patience: Patience = Patience.STEP) -> None:
        """Wait until an attempt has taken a step."""
        try:
            until(lambda: any(line["attempt"] >= attempt for line in self.run.read_metrics()), patience)
        except AssertionError:
            raise AssertionError(self.said()) from None

    def finish(self, patience: Patience = Patience.RUN) -> Outcome:
        """Wait for the final outcome."""
        try:
            return finish(self.run, patience)
        except AssertionError:
            raise AssertionError(self.said()) from None

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.run.read_events() if event["event"] == kind]

    def outcomes(self) -> list[tuple[str, int]]:
        results = [self.run.outcome(number) for number in self.run.attempts()]
        return [(o.state.value, o.exit_code) for o in results if o is not None]

    def standstill(self, attempt: int) -> float:
        """Seconds between the last step before an attempt and its first."""
        lines = self.run.read_metrics()
        before = [line["time"] for line in lines if line["attempt"] < attempt]
        return float(min(line["time"] for line in lines if line["attempt"] == attempt) - max(before))

    def leader(self) -> str:
        """The pod that carries the newest attempt."""
        return str(self.run.attempt_details(self.run.attempts()[-1])["carrier"])

    def node_of(self, pod: str) -> str:
        """The node of the cluster that a pod runs on."""
        return str(next(p for p in self.namespace.pods() if p["metadata"]["name"] == pod)["spec"]["nodeName"])

    def pods_of_agents(self) -> list[str]:
        return [str(a["address"]) for a in read_lines(self.run.attempt_dir(self.run.attempts()[-1]) / "agents.jsonl")]

    def said(self) -> str:
        """Everything that was said anywhere, for the message of a failed test."""
        carried = self.run.path / "conductor.log"
        arguments = [said(self.run), carried.read_text() if carried.exists() else "nobody carried it"]
        for pod in self.namespace.pods():
            name, status = pod["metadata"]["name"], pod["status"]
            arguments.append(f"== pod {name} on {pod['spec'].get('nodeName')}: {status.get('phase')} {status.get('conditions')}")
            try:
                arguments.append(self.namespace.kubectl("logs", "--tail=60", name))
            except AssertionError as error:
                arguments.append(str(error))
        return "\n".join(arguments)

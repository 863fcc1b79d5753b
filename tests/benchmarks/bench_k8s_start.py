"""Seconds from `ropewalk run --on` to the first step, against `kubectl apply` of a Job of the same training: one with the same
command, and a hand-written one in which nobody looks after the training.

    python -m tests.benchmarks.bench_k8s_start [--pairs 4]      as root, where the lab is found (see tests/k8s/lab.py)

The quick start's training, in the same image and on the same volume, on one pod and on two; all take turns, forwards and
backwards, after one start of each that does not count, and each includes the start of its command. by_hand.yaml is the
hand-written Job. Prints one JSON object.

Measured: Kubernetes' lab on this machine; a bare Job has nobody that looks after the training.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import AbstractContextManager, chdir
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_lines
from ropewalk.cluster.run.names import AGENTS
from ropewalk.jobs.cli.quickstart import settings
from ropewalk.jobs.runs.submit.submit import submit
from ropewalk.jobs.training.pretrain.config import PretrainConfig
from ropewalk.k8s.api.client import Kubernetes
from tests.jobs.corpus import make_dataset
from tests.k8s.cluster import Namespace
from tests.k8s.lab import lab_cluster
from tests.patience import Patience, until

PODS = (1, 2)
USER = 1000  # of by_hand.yaml
MANIFEST = Path(__file__).with_name("by_hand.yaml")

Moments = dict[str, float]  # seconds since the command was started


class Contest:
    """A namespace in which both ways start the same training."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace, self.runs = namespace, namespace.runs
        # data lies under the same path for this machine, for our pods and for those of the hand-written Job
        profile = namespace.options(claim_path=str(self.runs))
        self.values = {**settings(self.runs, 300)["pretrain"], "data": str(make_dataset(self.runs / "data", num_documents=4000))}
        self.folder = self.runs / "contest"
        self.folder.mkdir()
        (self.folder / "job.yaml").write_text(yaml.safe_dump(self.values))
        (self.folder / "clusters.yaml").write_text(yaml.safe_dump({"lab": {"backend": "k8s", **profile}}))

    def ours(self, pods: int) -> Moments:
        """One run of ours."""
        ropewalk = Path(sys.executable).with_name("ropewalk")
        arguments = ["run", "pretrain", "-c", "job.yaml", "--on", "lab", f"resources.nodes={pods}", "resources.cpus=1"]
        environment = {**os.environ, "ROPEWALK_CLUSTERS": str(self.folder / "clusters.yaml")}
        existing = {run.id for run in RunDir.all(self.runs)}
        began = time.time()
        with (self.folder / "said.txt").open("wb") as output:
            command = subprocess.Popen([ropewalk, *arguments], cwd=self.folder, env=environment, stdout=output, stderr=output)
        until(lambda: command.poll() is not None or {run.id for run in RunDir.all(self.runs)} - existing, Patience.RUN)
        assert command.poll() is None, (self.folder / "said.txt").read_text()
        run = next(run for run in RunDir.all(self.runs) if run.id not in existing)
        try:
            first = self.first_step(run)
        finally:
            command.kill()
            command.wait()
        self.clear()
        return {name: moment - began for name, moment in {**phases(run), "first step": first}.items()}

    def by_hand(self, pods: int) -> Moments:
        """One hand-written Job."""
        record = {"job": "pretrain", "entry": "ropewalk.jobs.training.pretrain.job:main", "config": self.values}
        run = RunDir.create("by-hand", record, self.runs)
        run.begin_attempt()
        for path in (run.path, *run.path.rglob("*")):
            os.chown(path, USER, USER)
        manifest = self.folder / "by-hand.yaml"
        manifest.write_text(yaml.safe_dump_all(self.manifest(run, pods)))
        began = time.time()
        self.namespace.kubectl("apply", "-f", str(manifest))
        first = self.first_step(run)
        self.clear()
        return {"first step": first - began}

    def same_command(self, pods: int) -> Moments:
        """The Job that `ropewalk run` would make, of a run that is written down."""
        resources = {"nodes": pods, "cpus": 1}
        config = PretrainConfig.model_validate({**self.values, "resources": resources})
        profiles = {"ROPEWALK_CLUSTERS": str(self.folder / "clusters.yaml")}
        with chdir(self.folder), mock.patch.dict(os.environ, profiles), nothing_is_created():
            run = submit("pretrain", config, "lab")
        began = time.time()
        self.namespace.kubectl("apply", "-f", str(run.attempt_dir(1) / "manifest.yaml"))
        first = self.first_step(run)
        self.clear()
        return {"first step": first - began}

    def manifest(self, run: RunDir, pods: int) -> list[dict[str, Any]]:
        """by_hand.yaml, filled in; one pod needs no other's address."""
        places = {"image": self.namespace.cluster.image, "python": self.namespace.cluster.python}
        places |= {"run": str(run.path), "runs": str(self.runs)}
        text = MANIFEST.read_text()
        for name, value in places.items():
            text = text.replace(f"<{name}>", value)
        service, job = yaml.safe_load_all(text)
        job["spec"] |= {"completions": pods, "parallelism": pods}
        container = job["spec"]["template"]["spec"]["containers"][0]
        group = {"MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK"} if pods == 1 else set()
        container["env"] = [each for each in container["env"] if each["name"] not in group]
        container["env"] += [{"name": n, "value": v} for n, v in self.namespace.cluster.environment.items()]
        return [job] if pods == 1 else [service, job]

    def first_step(self, run: RunDir) -> float:
        """Time of the first step."""
        return float(until(run.read_metrics, Patience.RUN)[0]["time"])

    def clear(self) -> None:
        """Nobody disturbs the next one: a pod is gone once its processes are, which forced deletion would not wait for."""
        self.namespace.kubectl("delete", "job,service", "--all", "--cascade=orphan")
        self.namespace.kubectl("delete", "pod", "--all", "--grace-period=1")
        until(lambda: not self.namespace.pods(), Patience.RUN)


def nothing_is_created() -> AbstractContextManager[object]:
    """A submission inside is written down, and that is all."""
    return mock.patch.object(Kubernetes, "create", lambda _, each: {**each, "metadata": {**each["metadata"], "uid": "none"}})


def phases(run: RunDir) -> Moments:
    """Moments on the way to the first step."""
    details, folder = run.attempt_details(1), run.attempt_dir(1)
    formed = next(event["time"] for event in run.read_events() if event["event"] == "group_formed")
    return {
        "run.yaml is written": float(run.record["created"]),
        "its attempt is open": details["created"],
        "all pods are here": details["started"],
        "the last agent is started": read_lines(folder / AGENTS)[-1]["started"],
        "the group has formed": formed,
    }


def contest(namespace: Namespace, pairs: int) -> dict[str, Any]:
    """Medians of all ways on each number of pods, and how many times as long ours takes."""
    stage, result = Contest(namespace), dict[str, Any]()
    ways = {
        "kubectl apply, by hand": stage.by_hand,
        "kubectl apply, same command": stage.same_command,
        "ropewalk run": stage.ours,
    }
    for pods in PODS:
        every: dict[str, list[Moments]] = {way: [] for way in ways}
        for start in ways.values():
            start(pods)  # files and bytecode are read for the first time
        for pair in range(pairs):
            for way in ways if pair % 2 == 0 else reversed(ways):
                every[way].append(ways[way](pods))
            text = ", ".join(f"{way} {moments[-1]['first step']:.1f} s" for way, moments in every.items())
            print(f"first step on {pods}: {text}", file=sys.stderr, flush=True)
        figures = {way: medians(moments) for way, moments in every.items()}
        ours = figures["ropewalk run"]["first step"]
        result[f"{pods} pods" if pods > 1 else "1 pod"] = {
            **figures,
            "times": {way: round(ours / figures[way]["first step"], 2) for way in ways if way != "ropewalk run"},
            "all": {way: [round(each["first step"], 2) for each in moments] for way, moments in every.items()},
        }
    return result


def medians(all_moments: list[Moments]) -> Moments:
    """Median of each moment."""
    return {name: round(statistics.median(each[name] for each in all_moments), 2) for name in all_moments[0]}


def main() -> None:
    """Bring a cluster up, measure, take it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=4)
    pairs = parser.parse_args().pairs
    with lab_cluster() as cluster:
        print(json.dumps(contest(cluster.namespace(), pairs), indent=1))


if __name__ == "__main__":
    main()

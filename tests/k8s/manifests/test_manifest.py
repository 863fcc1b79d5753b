"""Manifests compared with golden files, letter by letter. ROPEWALK_REWRITE_GOLDEN=1 pytest ... writes them anew."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from ropewalk import k8s
from ropewalk.cluster.config import Resources
from ropewalk.cluster.config_reader import load_section
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.k8s.manifests.job import dump, render_job, render_release_controller
from ropewalk.k8s.manifests.service import render_service, render_service_policy
from ropewalk.k8s.manifests.strategic_merge import merge
from ropewalk.k8s.names import LONGEST_NAME, name_of
from ropewalk.k8s.profile import K8sProfile

GOLDEN = Path(__file__).parents[2] / "golden/k8s"
MANIFESTS = Path(k8s.__file__).parent / "manifests"
REWRITE = "ROPEWALK_REWRITE_GOLDEN"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A manifest to be rendered."""

    resources: Mapping[str, Any] = field(default_factory=dict)
    profile: Mapping[str, Any] = field(default_factory=dict)
    code: Mapping[str, Any] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    number: int = 1
    held: bool = False


TEAM = {"namespace": "team", "image": "registry.example/ropewalk:1", "runs": "/mnt/runs", "service_account": "ropewalk"}
BIG = {
    **TEAM,
    "queue": "team",
    "queue_priority": "urgent",
    "priority_class": "high",
    "image_pull_secrets": ["registry"],
    "mounts": [{"claim": "corpora", "path": "/corpora"}, {"claim": "scratch", "path": "/scratch", "read_only": False}],
    "gpu": "amd.com/gpu",
    "devices": {"rdma/hca": 1},
    "node_selector": {"zone": "a"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "environment": {"NCCL_DEBUG": "WARN"},
    "secrets": ["wandb", "s3"],
    "user": 4711,
}
PATCH = {
    "metadata": {"annotations": {"sidecar.istio.io/inject": "false"}},
    "spec": {
        "hostNetwork": True,
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "10Gi"}}, {"name": "shm", "$patch": "delete"}],
        "containers": [
            {"name": "ropewalk", "env": [{"name": "HOME", "value": "/scratch"}], "imagePullPolicy": None},
            {"name": "exporter", "image": "exporter:1"},
        ],
    },
}
CASES = {
    "plain": Case(),
    "nodes": Case(resources={"nodes": 2, "cpus": 4, "memory_gib": 8}, profile=TEAM),
    "everything": Case(resources={"nodes": 8, "gpus": 4, "ranks_per_node": 4, "cpus": 32, "memory_gib": 256.5}, profile=BIG),
    "elastic": Case(resources={"nodes": "1..4", "grace_seconds": 30}, profile={**TEAM, "queue": "team"}),
    "spare": Case(resources={"nodes": 2, "spare_nodes": 1}),
    "held": Case(profile={**TEAM, "queue": "team"}, held=True, number=3),
    "code": Case(code={"snapshot": "3f2a", "folder": "src", "is_program": True}, profile=TEAM),
    "secrets": Case(secrets=("HF_TOKEN", "SSH_KEY"), profile={**TEAM, "secret_store": "mine"}),
    "patched": Case(profile={**TEAM, "pod": PATCH}),
}


def run_of(case: Case) -> RunDir:
    run = RunDir("/mnt/runs/pretrain-1")
    record = {"run": run.id, "engine": "ranks", "resources": dict(case.resources), "code": dict(case.code)}
    run.__dict__["record"] = {**record, **({"secrets": list(case.secrets)} if case.secrets else {})}
    return run


def render(case: Case) -> str:
    resources, profile = Resources.model_validate(case.resources), K8sProfile.model_validate(case.profile)
    return dump([render_job(run_of(case), resources, profile, case.number, held=case.held)])


def compare(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get(REWRITE):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert path.exists(), f"{path}: not there; {REWRITE}=1 writes it"
    assert text == path.read_text(), f"{path}; if that is meant, {REWRITE}=1 writes it anew"


@pytest.mark.parametrize("name", CASES)
def test_a_manifest(name: str) -> None:
    compare(f"{name}.yaml", render(CASES[name]))


def test_pods_keep_away_from_nodes_in_every_term_of_the_profiles_own_affinity() -> None:
    def terms(**profile: Any) -> list[Any]:
        case = Case(profile=profile)
        job = render_job(run_of(case), Resources(), K8sProfile.model_validate(profile), avoided=["n3", "n7"])
        spec: dict[str, Any] = job["spec"]["template"]["spec"]
        return list(spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"])

    avoided = {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["n3", "n7"]}
    assert terms() == [{"matchExpressions": [avoided]}]
    zone = {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}
    fields = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}
    wanted = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [zone, fields]}}}
    assert terms(pod={"spec": {"affinity": wanted}}) == [
        {"matchExpressions": [*zone["matchExpressions"], avoided]},
        {**fields, "matchExpressions": [avoided]},
    ]
    assert len(zone["matchExpressions"]) == 1, "the profile stays as it is"


def test_a_release_controller() -> None:
    case = CASES["held"]
    controller = render_release_controller(run_of(case), K8sProfile.model_validate(case.profile), case.number)
    compare("release-controller.yaml", dump([controller]))


def test_a_release_controller_has_none_of_the_secrets_that_runs_have() -> None:
    controller = render_release_controller(run_of(CASES["held"]), K8sProfile(secrets=("wandb", "s3")), 1)
    assert "secretRef" not in dump([controller])


def test_a_release_controllers_pods_can_be_told_from_a_runs_however_long_its_name() -> None:
    run = RunDir(f"/runs/{'x' * 80}")
    run.__dict__["record"] = {"run": run.id, "engine": "ranks", "resources": {}, "code": {}}
    name = render_release_controller(run, K8sProfile(), 1)["metadata"]["name"]
    assert name.endswith("-gate")
    assert len(name) < 58, "of 63, five are random, after a -: a longer one is cut"


def test_a_service_stands_before_the_first_pod_of_a_run_that_answers_requests() -> None:
    run = run_of(Case())
    profile = K8sProfile.model_validate(TEAM)
    assert render_service(run, profile, 1) is None
    run.record["service"] = {"port": 8000}  # type: ignore[index]
    first, later = render_service(run, profile, 1), render_service(run, profile, 2)
    assert first is not None
    assert later is not None
    policy = render_service_policy(run, profile, 1)
    assert policy is not None
    compare("service.yaml", dump([first, policy]))
    assert policy["spec"]["podSelector"]["matchLabels"] == first["spec"]["selector"]
    shipped = yaml.safe_load((MANIFESTS / "network-policy.yaml").read_text())
    assert policy["spec"]["ingress"][1:] == shipped["spec"]["ingress"], (
        "pods of a run reach each other without the shipped one too"
    )
    assert first["metadata"]["name"] == later["metadata"]["name"], "clients keep the name when the run is submitted again"
    pod = render_job(run, Resources(), profile)["spec"]["template"]["metadata"]["labels"]
    selector = {key: value for key, value in first["spec"]["selector"].items() if not key.startswith("batch.kubernetes.io/")}
    assert selector.items() <= pod.items()


def test_no_golden_file_is_left_over() -> None:
    others = {"release-controller.yaml", "service.yaml"}
    assert {path.name for path in GOLDEN.iterdir()} == {*others, *(f"{name}.yaml" for name in CASES)}


@pytest.mark.parametrize("name", sorted({*CASES} - {"patched"}))
def test_what_pod_security_asks_for(name: str) -> None:
    spec = yaml.safe_load(render(CASES[name]))["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert not any("hostPath" in volume for volume in spec["volumes"])
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        security = container["securityContext"]
        assert (security["allowPrivilegeEscalation"], security["readOnlyRootFilesystem"]) == (False, True)
        assert security["capabilities"] == {"drop": ["ALL"]}


def test_no_secret_is_in_a_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    assert "0123456789abcdef" not in render(CASES["everything"])
    with pytest.raises(ConfigError, match=r"WANDB_API_KEY looks like a secret.*ropewalk secret set"):
        load_section(K8sProfile, {"environment": {"WANDB_API_KEY": "x"}}, "cluster 'team'")


def test_names_are_unique_and_short_enough_for_a_pods_host_name() -> None:
    long = [f"{'a-very-long-name-of-a-run-' * 3}{i}" for i in range(2)]
    names = {name_of(run, number) for run in (*long, "short") for number in (1, 12)}
    assert len(names) == 6
    assert max(map(len, names)) <= LONGEST_NAME
    assert name_of("pretrain-20261125-004359-6984", 1) == "pretrain-20261125-004359-6984-1"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("claim_path", "runs", "must be an absolute path"),
        ("namespace", "Team", "must be a valid Kubernetes name"),
        ("devices", {"gpu": 1}, "is not a Kubernetes resource name"),
        ("pod", {"containers": []}, "is not part of a pod"),
        ("imagge", "x", "did you mean 'image'"),
        ("environment", {"ROPEWALK_JOB": "x"}, "is set by the manifest"),
        ("ray", "rayjob", "ray: rayjob: every run is an Indexed Job that starts its own Ray; remove `ray` from the profile"),
    ],
)
def test_a_wrong_key_of_a_profile(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"cluster 'team': .*{message}"):
        load_section(K8sProfile, {key: value}, "cluster 'team'")


def test_a_patch_leaves_what_it_does_not_name() -> None:
    pod = {"spec": {"containers": [{"name": "a", "args": [1, 2], "ports": [{"containerPort": 1}]}, {"name": "b"}]}}
    patch = {"spec": {"containers": [{"name": "a", "args": [3]}, {"name": "b", "$patch": "delete"}], "x": {"y": None}}}
    left = {"name": "a", "args": [3], "ports": [{"containerPort": 1}]}
    assert merge(pod, patch) == {"spec": {"containers": [left], "x": {}}}
    replaced = merge(pod, {"spec": {"containers": [{"$patch": "replace"}, {"name": "c"}]}})
    assert replaced == {"spec": {"containers": [{"name": "c"}]}}
    assert len(pod["spec"]["containers"]) == 2

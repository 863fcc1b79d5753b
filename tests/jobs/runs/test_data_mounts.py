"""Data under names that each cluster's profile defines."""

from pathlib import Path

import pytest
import yaml

from ropewalk.cluster.backends.base import Profile
from ropewalk.cluster.data_mounts import mount_location, mounted_path
from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.runs.submit.dry_run import dry_run
from ropewalk.jobs.training.pretrain.config import PretrainConfig
from ropewalk.k8s.backend import K8sBackend
from ropewalk.k8s.manifests.job import apply_profile, load_job
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import pretrain_config

MOUNTS = {"corpus": "/gpfs/corpus", "clean": "/gpfs/corpus/clean"}


def test_locations_and_paths() -> None:
    for location, path in {"data://corpus": "/gpfs/corpus", "data://clean/a/b": "/gpfs/corpus/clean/a/b", "/x": "/x"}.items():
        assert mounted_path(location, MOUNTS, "big") == path
        assert mount_location(path, MOUNTS) == location
    assert mount_location("/gpfs/corpus2", MOUNTS) == "/gpfs/corpus2"
    with pytest.raises(ConfigError, match=r"cluster 'big' has no mount 'texts' \(it has clean, corpus\); add `mounts: {texts:"):
        mounted_path("data://texts/a", MOUNTS, "big")


def test_a_job_names_data_by_a_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(tmp_path / "corpus/d", num_documents=8)
    (tmp_path / "clusters.yaml").write_text(
        yaml.safe_dump(
            {"local": {"mounts": {"corpus": str(tmp_path / "corpus")}}, "bad": {"backend": "slurm", "mounts": {"a": "b"}}}
        )
    )
    monkeypatch.setenv("ROPEWALK_CLUSTERS", str(tmp_path / "clusters.yaml"))
    config = PretrainConfig.model_validate(pretrain_config(Path("x")) | {"data": "data://corpus/d"})
    planned = dry_run("pretrain", [config], "local")
    assert planned.configs[0].model_dump()["data"] == str(tmp_path / "corpus/d")
    with pytest.raises(ConfigError, match="data://other: cluster 'local' has no mount 'other'"):
        dry_run("pretrain", [config.model_copy(update={"data": "data://other"})], "local")
    with pytest.raises(ConfigError, match="must be an absolute path"):
        dry_run("pretrain", [config], "bad")


def test_mounts_of_pods_have_names_too() -> None:
    named = {"corpus": {"claim": "corpora", "path": "/corpora"}, "images": "/opt/images"}
    backend = K8sBackend(Profile(name="team", backend="k8s", options={"mounts": named}))
    assert backend.mounts == {"corpus": "/corpora", "images": "/opt/images"}
    pod = apply_profile(load_job("volume-reader.yaml")["spec"]["template"], backend.profile)
    claims = [
        volume["persistentVolumeClaim"]["claimName"] for volume in pod["spec"]["volumes"] if "persistentVolumeClaim" in volume
    ]
    assert claims == ["runs", "corpora"]

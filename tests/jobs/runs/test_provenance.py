"""Record of the packages that a run was submitted with."""

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from pydantic import ValidationError

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.installed import installed_versions
from ropewalk.cluster.section import Section
from ropewalk.jobs.runs.submit.provenance import VERSIONS, refuse_secrets
from ropewalk.k8s.profile import K8sProfile
from ropewalk.slurm.profile import SlurmProfile


def told(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def test_versions_are_those_that_the_packages_tell() -> None:
    assert installed_versions(VERSIONS) == {name: told(name) for name in VERSIONS}


def test_wheels_and_eggs_are_known_by_their_folders_and_the_first_one_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("first/torch-2.9.0+cpu.dist-info", "second/torch-1.0.dist-info", "second/PyYAML-6.0-py3.11.egg-info"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path / name) for name in ("first", "gone", "second")])
    assert installed_versions(["torch", "pyyaml", "ray"]) == {"torch": "2.9.0+cpu", "pyyaml": "6.0", "ray": None}


@pytest.mark.parametrize(
    "arguments",
    [
        ["python", "train.py", "--token=hf_abc"],
        ["python", "train.py", "--api-key", "sk-abc"],
        ["env", "WANDB_API_KEY=abc", "python", "train.py"],
        ["bash", "-c", "cd x && WANDB_API_KEY='abc' python train.py"],
        ["bash", "-c", "train --api-key abc --steps 3"],
        ["python", "train.py", "hub.token=hf_abc"],
        ["train.py", "--use-auth-token", "hf_abc"],
        ["train.py", "--api-key", "/9j4AAQ/abc+x", "--token=[x]secret"],
        ["train.py", "--hf", "hf_abcdefghijklmnopqrstuvwxyz0123456789"],
        ["git", "clone", "https://ghp_abcdefghij0123456789@github.com/x/y"],
        ["curl", "-H", "Authorization: Bearer abcdef0123", "https://host"],
        ["bash", "-c", "curl -H 'authorization: token abcdef0123' https://host"],
    ],
)
def test_no_word_of_a_command_is_a_secret(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"command: contains what looks like a secret.*; use a file"):
        refuse_secrets({"command": arguments}, "use a file")


@pytest.mark.parametrize(
    "arguments",
    [
        ["sort", "--key", "2", "--key=3", "key=name", "data.key=text"],
        ["bash", "-c", 'HF_TOKEN=$(cat ~/.token) train --token $HF_TOKEN --api-key="$KEY" --token {token}'],
        ["train.py", "--use-auth-token", "True", "--eos-token=</s>", "--image-token", "<image>", "--max-token", "--steps=3"],
        ["python", "-c", "print(sorted(words, key=len), tokenizer(token=word), token=word)"],
        ["train.py", "--tokens", "1e9", "--token-file", "/home/me/token", 3],
        ["train.py", "--credentials", "/home/me/creds.json", "--password", "./pw", "--api-key=~/key", "--secret=/run/secret"],
        ["curl", "-H", "Authorization: Bearer $TOKEN", "--data", "hf_transfer=1", "sk-learn-examples-2025"],
        ["train.py", "--use-auth-token", "data.jsonl", "--unknown-token", "[UNK]", "--boi-token", "img"],
    ],
)
def test_what_only_resembles_a_secret_in_a_command_is_none(arguments: list[str]) -> None:
    refuse_secrets({"command": arguments}, "use a file")


def test_no_argument_of_a_function_is_a_secret() -> None:
    with pytest.raises(ConfigError, match="kwargs: contains what looks like a secret"):
        refuse_secrets({"kwargs": {"login": "ghp_abcdefghij0123456789"}}, "use a file")


@pytest.mark.parametrize("kind", [SlurmProfile, K8sProfile])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "postgres://u:pw@host/db"),
        ("GITHUB_PAT", "x"),
        ("NPM_AUTH", "x"),
        ("SLACK_WEBHOOK_URL", "x"),
        ("A", "hf_" + "a1" * 17),
    ],
)
def test_no_variable_of_a_profile_is_a_secret(kind: type[Section], name: str, value: str) -> None:
    with pytest.raises(ValidationError, match=f"variable {name} looks like a secret"):
        kind.model_validate({"environment": {name: value}})


@pytest.mark.parametrize("kind", [SlurmProfile, K8sProfile])
def test_variables_that_only_resemble_secrets_are_none(kind: type[Section]) -> None:
    kind.model_validate({"environment": {"DATABASE_URL": "postgres://host/db", "OMP_NUM_THREADS": "4", "AUTHOR": "me"}})

"""What a run records of the packages that it was submitted with."""

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from cluster.installed import installed_versions
from jobs.runs.provenance import VERSIONS


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

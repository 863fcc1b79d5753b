"""The cluster that KUBECONFIG_TEST names. Its image has the packages; the code under test travels on the volume, as a user's."""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.k8s.cluster import REMEDY, Cluster


@contextmanager
def outside_cluster() -> Iterator[Cluster]:
    """A cluster that existed before the session and stays."""
    kubeconfig, runs, image = (os.environ.get(f"KUBECONFIG_TEST{part}") for part in ("", "_RUNS", "_IMAGE"))
    if not kubeconfig or not runs or not image:
        pytest.skip(REMEDY)
    with closing(
        Cluster(kubeconfig=Path(kubeconfig), shared=Path(runs), image=image, python="python", has_checkout=False)
    ) as server:
        yield server

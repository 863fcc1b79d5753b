"""The limit of open files of a rank in a large group."""

import os
import resource
from collections.abc import Iterator

import pytest

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.process.sockets import prepare_sockets

NONE = resource.RLIM_INFINITY


@pytest.fixture(autouse=True)
def decided_by_the_user(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCH_GLOO_LAZY_INIT", "0")
    yield
    assert os.environ["TORCH_GLOO_LAZY_INIT"] == "0"


@pytest.mark.parametrize(
    ("rank", "ranks", "limits", "expected"),
    [
        (0, 1024, (1024, 524288), 4328),
        (1, 1024, (1024, 524288), 1320),
        (0, 1024, (1024, NONE), 4328),
        (0, 1024, (1024, 3400), 3400),  # fewer shards may be open
        (0, 1, (1024, 1024), 1024),
        (0, 1024, (20000, 20000), 20000),
        (0, 1024, (NONE, NONE), NONE),
    ],
)
def test_a_rank_may_open_as_many_files_as_its_group_needs(
    monkeypatch: pytest.MonkeyPatch, rank: int, ranks: int, limits: tuple[int, int], expected: int
) -> None:
    set_to = [limits]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: set_to.append(pair))
    prepare_sockets(rank, ranks)
    assert set_to[-1] == (expected, limits[1])


def test_too_low_a_limit_is_refused_with_the_number_and_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, 1500))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: None)
    message = r"rank 0 of 1,?024 ranks needs 3328 open files, and the hard limit on its node is 1500: .*ulimit -Hn 3328"
    with pytest.raises(ConfigError, match=message):
        prepare_sockets(0, 1024)

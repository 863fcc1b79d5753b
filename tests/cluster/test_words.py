"""Words for people."""

import pytest

from ropewalk.cluster.text import counted


@pytest.mark.parametrize(
    ("number", "message"),
    [(1, "1 node"), (2, "2 nodes"), (0, "0 nodes"), ("1", "1 node"), ("1..4", "1..4 nodes"), (2.5, "2.5 nodes"), (1.0, "1 node")],
)
def test_counted(number: float | str, message: str) -> None:
    assert counted(number, "node") == message

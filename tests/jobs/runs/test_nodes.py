"""`ropewalk nodes` lists machines that failed under runs, and says which of them new runs avoid."""

import json
import os
import time

import pytest

from ropewalk.cluster.run.files import append_line
from tests.fakes.backend import FakeBackend
from tests.jobs.shell import Shell


def test_nodes_lists_failures_and_what_is_avoided(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no machine of good failed" in shell("nodes", "--on", "good")
    folder = shell.home / "runs" / ".nodes"
    folder.mkdir(parents=True)
    for days, node, run in ((1, "n3", "a"), (2, "n3", "b"), (4, "n7", "c")):
        line = {"time": time.time() - 86400 * days, "node": node, "cause": "down", "run": run, "attempt": 1}
        append_line(folder / f"good-{os.getuid()}.jsonl", line)
    monkeypatch.setattr(FakeBackend, "avoided_nodes", lambda *_: ["n3"])
    rows = json.loads(shell("nodes", "--on", "good", "--json"))["nodes"]
    assert [(row["node"], row["avoided"], row["runs"], row["causes"]) for row in rows] == [
        ("n3", True, 2, ["down"]),
        ("n7", False, 1, ["down"]),
    ]
    assert "n7" in shell("nodes", "--on", "good")

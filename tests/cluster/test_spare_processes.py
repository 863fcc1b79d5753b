"""Spare processes of a node: what they do before they wait for a place in a group."""

import sys
import time
from pathlib import Path

import pytest

from ropewalk.cluster.engines.local_ranks import SPARE_SECONDS, LocalRanks
from ropewalk.cluster.membership.node_agent import Start
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.secrets.variables import NO_SECRETS
from tests.patience import Patience, until

RANK = "tests.cluster.rehearsing"


def test_a_spare_process_rehearses_until_it_gets_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunDir.create("r", {"job": "command", "config": {}, "resources": {}, "entry": f"{RANK}:train"}, tmp_path)
    attempt = run.begin_attempt()
    ranks = LocalRanks(1, NO_SECRETS, JobContext(run=run, attempt=attempt, stop_flag=tmp_path / "stop"))
    exits: dict[int, int] = {}

    def look(later: float = 0.0) -> dict[int, int]:
        exits.update(ranks.reap(time.monotonic()))
        ranks.prepare(time.monotonic() + later)
        return exits

    def begin(group: int) -> None:
        ranks.start(Start(group=group, node_rank=0, nodes=1, address="127.0.0.1", port=1), store_prefix="")

    try:
        look()
        begin(1)
        until(lambda: not look(SPARE_SECONDS) and Path("began").exists(), Patience.SIGNAL)
        ranks.kill()
        assert not Path("ended").exists()
        begin(2)
        until(lambda: look() == {0: 0}, Patience.SIGNAL)
        assert Path("ended").exists()
        assert RANK not in sys.modules, "an agent imports nothing of a job: torch may take half a minute"
    finally:
        ranks.close()

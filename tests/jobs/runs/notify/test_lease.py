"""The lease of a run's mirror: one owner at a time, also if many notice that the owner died."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from ropewalk.cluster.run.files import machine, write_json
from ropewalk.jobs.runs.notify.lease import Lease

TAKERS, ROUNDS = 8, 40


def test_a_dead_owner_has_one_successor(tmp_path: Path) -> None:
    path, together = tmp_path / "online.lease", Barrier(TAKERS)

    def take(lease: Lease) -> bool:
        together.wait()
        return lease.take()

    with ThreadPoolExecutor(TAKERS) as pool:
        for number in range(ROUNDS):
            write_json(path, {"token": f"dead-{number}", "machine": machine(), "pid": 2**22 + 1, "started": 1.0})
            assert list(pool.map(take, [Lease(path) for _ in range(TAKERS)])).count(True) == 1

"""Many runs at once: one list call tells of all, and all are cancelled together; bench_k8s_many.py does it with a thousand."""

from contextlib import closing

import pytest

from ropewalk.cluster.spec import RunState
from tests.k8s.cluster import Cluster, Namespace
from tests.k8s.fleet import Fleet, add_nodes, remove_nodes
from tests.patience import Patience, until

NODES = 4


@pytest.mark.soak("twenty nodes and sixty runs that kwok plays; make test lists and cancels runs in submission/test_submit.py")
@pytest.mark.parametrize("runs", [20, 60])
def test_many_runs(runs: int, kube: Cluster, namespace: Namespace) -> None:
    add_nodes(kube, NODES)
    try:
        with closing(Fleet(namespace, runs)) as fleet:
            see_through(kube, namespace, fleet, runs)
    finally:
        remove_nodes(kube)


def see_through(kube: Cluster, namespace: Namespace, fleet: Fleet, runs: int) -> None:
    assert fleet.submit() < 10
    until(lambda: fleet.words(fleet.look()[1]) == {"RUNNING": runs}, Patience.STEP)
    seconds, _, calls = fleet.look()
    assert seconds < 1
    assert calls == ["Job"]
    assert fleet.cancel() < 10
    until(lambda: not namespace.items("Job"), Patience.STEP)
    assert {state.state for state in fleet.look()[1].values()} == {RunState.CANCELLED}

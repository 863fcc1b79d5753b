"""Population based training over real training runs: what is handed over is what the donor had, bit by bit."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.storage import StoragePath
from ropewalk.jobs.orchestration.sweep.records import TrialState
from ropewalk.sharding.checkpoints.layout import is_pinned, steps_in
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import equal, events, log_of, make_run, pretrain_config, start, weights
from tests.jobs.sweeping import Swept, sweeps
from tests.patience import Patience, until

pytestmark = [
    pytest.mark.soak(
        "trains five models; make test runs test_it_goes_on_from_another_runs_checkpoint_with_other_hyperparameters"
    ),
    pytest.mark.slow,
]

Start = Callable[..., Swept]


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Start]:
    with sweeps(tmp_path) as begin:
        yield begin


def test_an_exploit_goes_on_from_the_donors_very_weights(sweep: Start, tmp_path: Path) -> None:
    base = pretrain_config(make_dataset(tmp_path / "data", num_documents=400), steps=60, checkpoint={"keep": 2})
    del base["optim"]
    swept = sweep(
        job="pretrain",
        base=base,
        # one learns next to nothing: whoever reports first, it is the worst, and exploits another
        space={"optim.lr": {"loguniform": [1e-6, 1e-1]}, "optim.weight_decay": {"uniform": [0.0, 0.3]}},
        metric="train/loss",
        scheduler="pbt",
        pbt={"interval_steps": 10},
        trials=4,
        seed=0,
    )
    until(lambda: swept.events("exploited"), describe=swept.said)
    swept.kill_driver()
    results = swept.finish(patience=Patience.CLUSTER)
    assert results["trials"] == {"SUCCEEDED": 4}
    records = swept.records()
    exploits = [(record, position, entry) for record in records for position, entry in enumerate(record.lineage)]
    assert exploits, "somebody exploited somebody"
    assert len(swept.events("exploited")) == len(exploits)
    for record, location, entry in exploits:
        taker, donor = RunDir(swept.root / record.runs[location + 1]), RunDir(swept.root / entry["from_run"])
        assert events(taker, "started_from")[0]["step"] == entry["step"]
        assert taker.record["config"]["optim"]["lr"] == entry["parameters"]["optim.lr"]
        again = make_run(
            tmp_path / "again", taker.record["config"] | {"start_from": {"run": str(donor.path), "step": entry["step"]}}
        )
        assert start(again, 1, TEST_HOOK="resave").wait() == [85], log_of(again)
        assert equal(weights(again, entry["step"]), weights(donor, entry["step"]))
    for run in swept.runs():
        location = StoragePath(run.checkpoints)
        assert not [step for step in steps_in(location) if is_pinned(location, step)], "pins go with the sweep"
    assert all(record.state is TrialState.SUCCEEDED for record in records)

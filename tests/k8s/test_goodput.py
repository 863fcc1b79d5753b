"""Goodput of a training whose pod is deleted, which is stopped or queued until its successor starts, or that loses a rank."""

import json
from collections.abc import Callable

import pytest

from ropewalk.cluster.spec import RunState
from tests.fakes.timed import PLAN
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import pretrain_config
from tests.jobs.results.witnessed import check, fault
from tests.k8s.cluster import Namespace
from tests.k8s.toy import KubeToy


@pytest.mark.soak("four trainings; make test has other disturbances on the local backend")
@pytest.mark.parametrize("step", [8, 13, 22, None])
def test_a_training_whose_pod_is_deleted(namespace: Namespace, start: Callable[..., KubeToy], step: int | None) -> None:
    plan = [fault("data", 5, 0.5), fault("save", 10, 0.7), fault("validate", 20, 0.6)]
    plan += [fault("kill", 17)] if step is None else []
    config = pretrain_config(make_dataset(namespace.runs / "data"), steps=30, checkpoint={"every_steps": 10})
    config |= {"validation": {"every_steps": 20, "max_sequences": 4}}
    profile = {"environment": {**namespace.options()["environment"], PLAN: json.dumps(plan)}}
    run = start("tests.fakes.timed:train", "ranks", profile=profile, **config)
    if step is not None:
        run.reach(step)
        namespace.kubectl("delete", "pod", "--wait=false", run.leader())
    assert run.finish().state is RunState.SUCCEEDED
    check(run.run, plan)

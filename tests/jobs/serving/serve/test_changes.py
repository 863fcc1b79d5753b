"""Replicas by load, a successor that takes over, and a model that cannot be served at all: a run for each."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.inference.scoring.endpoint_chat import EndpointChat, find_endpoint
from ropewalk.jobs.inference.scoring.generate import Sampling
from ropewalk.jobs.runs.show.cancel import cancel_runs
from ropewalk.jobs.runs.show.view import view_of
from ropewalk.jobs.runs.submit.submit import configure, submit
from tests.fakes.engine import fake_model
from tests.jobs.serving.serve.serving import ENGINE, MODEL, Load, Serving, ask, serving
from tests.jobs.tiny import tiny_model
from tests.patience import Patience, until

pytestmark = [pytest.mark.timeout(1800), pytest.mark.usefixtures("alone_with_ray")]

WORDS = 10


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Serving]]:
    monkeypatch.setenv("ROPEWALK_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with ExitStack() as stack:
        yield lambda **keys: stack.enter_context(serving(tmp_path, {"words": WORDS, "pause": 0.05}, **keys))


@pytest.mark.soak("a Ray of its own; test_rollout.py covers the number of replicas")
def test_replicas_come_with_the_load_and_drain_when_it_goes(start: Callable[..., Serving]) -> None:
    run = start(replicas="1..2", slots=2, scale={"up_seconds": 1, "down_seconds": 3})
    assert len(run.replicas(f"{MODEL}@1")) == 1
    with Load(run.address, WORDS, clients=4) as load:
        run.until(lambda: len(run.replicas(f"{MODEL}@1")) == 2, Patience.CLUSTER)
        before = load.count
        run.until(lambda: load.count > before + 20)
        load.calm(1)  # one client is less than two replicas are for
        load.pause = 0.5
        run.until(lambda: len(run.replicas(f"{MODEL}@1")) == 1, Patience.CLUSTER)
    assert load.failures == []


@pytest.mark.soak("two Rays at once")
def test_a_run_that_is_asked_to_leave_serves_until_its_successor_answers(start: Callable[..., Serving]) -> None:
    run = start(handover=True, **{"resources.grace_seconds": 240})
    attempt, failures = run.run.attempts()[-1], list[str]()
    with Load(run.address, WORDS, clients=2, pause=0.1) as load:
        run.until(lambda: load.count)
        run.stop()
        begun = run.until(lambda: run.events("handover_started"))[0]
        successor = RunDir(run.run.path.parent / begun["successor"])
        try:
            run.until(lambda: view_of(successor).plain()["versions"] and view_of(successor).endpoint(), Patience.CLUSTER)
            failures = list(load.failures)
            outcome = run.until(lambda: run.run.outcome(attempt), Patience.CLUSTER)
            assert (outcome.state, run.run.results()) == (RunState.SUCCEEDED, {"handed_over_to": successor.id})
            endpoint = view_of(run.run).endpoint()
            assert endpoint is not None
            assert endpoint == view_of(successor).endpoint(), "whoever asks for the old run finds the new one"
            assert ask(endpoint.address)[0] == 200
        finally:
            list(cancel_runs([successor.id]))
            until(lambda: (ended := successor.last_outcome()) is not None and ended.state.final)
    assert failures == [], "no request failed before the successor answered"
    assert not [failure for failure in load.failures if "cut" in failure]


@pytest.mark.soak("a Ray of its own; make test runs an update that does not load")
def test_a_model_that_cannot_be_served_fails_the_run_with_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROPEWALK_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    folder = fake_model(tmp_path / "bad", load="bad weights")
    arguments = [f"model={folder}", f"engine_command={ENGINE}", "retries.bugs=0", "resources.cpus=2"]
    run = submit("serve", configure("serve", None, arguments))
    outcome: Any = until(lambda: (result := run.last_outcome()) is not None and result.state.final and result, Patience.CLUSTER)
    assert outcome.state is RunState.FAILED
    assert "bad weights" in outcome.cause


@pytest.mark.soak("a Ray and torch; engines and the gateway have tests of their own")
def test_a_real_model_is_talked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROPEWALK_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("SERVE_TOKEN", "not-a-secret")
    folder = tiny_model(tmp_path / "tiny")
    run = submit(
        "serve", configure("serve", None, [f"model={folder}", "engine=transformers", "auth=SERVE_TOKEN", "resources.cpus=2"])
    )
    try:
        result = Serving(run, tmp_path)
        result.serves("tiny")
        endpoint = find_endpoint(run.id)
        assert endpoint is not None
        assert ask(endpoint.address)[0] == 401
        chat = EndpointChat(endpoint, Sampling(max_new_tokens=4, temperature=0.0, top_p=1.0))
        first = chat.answer("hello")
        chat.answer("and then?")
        assert [message["role"] for message in chat.messages] == ["user", "assistant", "user", "assistant"]
        assert chat.messages[1]["content"] == first
    finally:
        list(cancel_runs([run.id]))
        until(lambda: (outcome := run.last_outcome()) is not None and outcome.state.final)
    outcome = run.last_outcome()
    assert outcome is not None
    assert outcome.cause == "cancelled", "nothing is saved"
    with pytest.raises(ConfigError, match="listens nowhere now"):
        find_endpoint(run.id)


def test_a_run_that_has_not_started_says_when_it_can_be_reached(tmp_path: Path) -> None:
    run = RunDir.create("serve", {"job": "serve", "config": {}}, tmp_path)
    with pytest.raises(ConfigError, match=f"{run.id} does not serve yet; `ropewalk show {run.id}`"):
        find_endpoint(str(run.path))

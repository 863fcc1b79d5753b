"""Traffic of versions, step by step and without Ray: desired and observed state in, new state out."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ropewalk.cluster.run.files import write_json
from ropewalk.jobs.serving.serve.config import ServeConfig
from ropewalk.jobs.serving.serve.controller.state import Phase, ServingState
from ropewalk.jobs.serving.serve.controller.traffic import Observation, TrafficController
from ropewalk.jobs.serving.serve.models import Wanted
from ropewalk.jobs.serving.serve.scaling import LoadPolicy

UP = Observation(replicas=1, probe="")


@dataclass
class Steps:
    """A serving run whose clock is turned by hand."""

    keys: dict[str, Any] = field(default_factory=dict)
    now: float = 1000.0
    state: ServingState = field(default_factory=lambda: ServingState(attempt=1))
    reported: list[str] = field(default_factory=list)

    def step(self, stable: str | None, seconds: float = 1.0, *, canary: str | None = None, **observed: Observation) -> None:
        self.now += seconds
        config = ServeConfig(model="m", **self.keys)
        events = TrafficController(config, self.state, self.now).step(Wanted(stable=stable, canary=canary), observed)
        self.reported += [f"{kind} {fields.get('version')}" for kind, fields in events]
        ServingState.model_validate_json(self.state.model_dump_json())

    def serving(self, version: str) -> "Steps":
        """Simulate that the run serves a version."""
        for _ in range(3):
            self.step(version, **{version: UP})
        assert self.state.stable == version
        return self

    def phase(self, version: str) -> Phase | None:
        result = self.state.versions.get(version)
        return result.phase if result else None


def test_a_version_loads_is_asked_and_serves() -> None:
    run = Steps()
    run.step("a")
    assert (run.phase("a"), run.state.stable) == (Phase.LOADING, None)
    run.step("a", a=Observation(replicas=1))
    assert (run.phase("a"), run.state.stable) == (Phase.PROBING, None)
    run.step("a", a=UP)
    assert (run.phase("a"), run.state.stable) == (Phase.READY, "a")
    assert run.reported == ["version_loading a", "version_ready a", "version_serves a"]


def test_all_replicas_load_before_it_takes_over() -> None:
    run = Steps({"replicas": "2..3"})
    run.step("a")
    run.step("a", a=Observation(replicas=1))
    assert run.phase("a") is Phase.LOADING
    run.step("a", a=Observation(replicas=2))
    assert run.phase("a") is Phase.PROBING


def test_a_new_version_is_loaded_beside_the_old_one_which_stays_for_a_rollback() -> None:
    run = Steps({"update": {"keep_previous_minutes": 1}}).serving("a")
    run.step("b", a=UP)
    assert (run.state.stable, run.phase("a"), run.phase("b")) == ("a", Phase.READY, Phase.LOADING)
    run.step("b", a=UP, b=Observation(replicas=1))
    run.step("b", a=UP, b=UP)
    assert (run.state.stable, run.state.previous) == ("b", "a")
    run.step("a", a=UP, b=UP)  # rolled back: the next step
    assert (run.state.stable, run.state.previous) == ("a", "b")
    run.step("a", 61.0, a=UP, b=UP)
    assert run.phase("b") is Phase.LEAVING
    run.step("a", a=UP, b=Observation(replicas=1, running=2))
    run.step("a", 5.0, a=UP, b=Observation(replicas=1, running=1))
    assert run.phase("b") is Phase.LEAVING, "it has open requests"
    run.step("a", a=UP, b=Observation(replicas=1))
    assert run.phase("b") is None
    assert run.reported[-1] == "version_gone b"


def test_a_version_that_does_not_load_or_answer_never_gets_traffic() -> None:
    for item, cause in (
        (Observation(failed="bad weights"), "loading failed: bad weights"),
        (Observation(replicas=1, probe="it answers 500"), "probe failed: it answers 500"),
    ):
        run = Steps().serving("a")
        run.step("b", a=UP)
        run.step("b", a=UP, b=item)
        run.step("b", a=UP, b=item)
        assert (run.state.stable, run.phase("b"), run.state.versions["b"].cause) == ("a", Phase.REFUSED, cause)
        run.step("a", a=UP)
        assert run.phase("b") is None, "forgotten: promoted again, it is tried again"
        run.step("b", a=UP)
        assert run.phase("b") is Phase.LOADING


def test_versions_that_never_load_or_are_withdrawn_end() -> None:
    run = Steps({"update": {"start_minutes": 1}}).serving("a")
    run.step("b", a=UP)
    run.step("b", 61.0, a=UP, b=Observation(waits="1 GPU is needed, none is free"))
    assert run.phase("b") is Phase.REFUSED
    assert "1 GPU is needed" in run.state.versions["b"].cause
    run = Steps().serving("a")
    run.step("b", a=UP)
    run.step("a", a=UP)
    assert run.phase("b") is None


def test_a_gate_that_has_not_passed_keeps_a_version_out_until_it_has() -> None:
    run = Steps({"update": {"gated": True}}).serving("a")
    config = ServeConfig(model="m", **run.keys)
    step = TrafficController(config, run.state, 2000.0).step
    assert step(Wanted(stable="b", barred={"b": "its gate refused it"}), {"a": UP})[0][0] == "version_refused"
    assert run.state.versions["b"].cause == "its gate refused it"
    run.step("b", a=UP)
    run.step("b", a=UP)
    assert run.phase("b") is Phase.LOADING


CANARY = {"canary": {"share": 0.2, "requests": 10, "minutes": 5, "max_error_rate": 0.1}}


def canary_of_b() -> Steps:
    run = Steps(CANARY).serving("a")
    run.step("b", a=UP)
    run.step("b", a=UP, b=Observation(replicas=1))
    run.step("b", a=UP, b=UP)
    assert run.state.canary is not None
    assert (run.state.stable, run.state.canary.version) == ("a", "b")
    return run


def test_a_canary_takes_over_once_it_has_answered_enough() -> None:
    run = canary_of_b()
    run.step("b", a=UP, b=Observation(replicas=1, probe="", requests=9))
    assert run.state.stable == "a"
    run.step("b", a=UP, b=Observation(replicas=1, probe="", requests=10, errors=1))
    assert (run.state.stable, run.state.canary) == ("b", None)
    quiet = canary_of_b()
    quiet.step("b", 301.0, a=UP, b=Observation(replicas=1, probe="", requests=1))
    assert quiet.state.stable == "b", "nobody asks it much, and it did no harm"


def test_a_canary_that_fails_too_often_or_dies_gets_no_more() -> None:
    for item in (Observation(replicas=1, probe="", requests=6, errors=3), Observation(replicas=0, failed="killed", probe="")):
        run = canary_of_b()
        run.step("b", a=UP, b=item)
        assert (run.state.stable, run.state.canary, run.phase("b")) == ("a", None, Phase.REFUSED)
        assert "canary" in run.state.versions["b"].cause


def test_a_gateway_that_counts_anew_does_not_confuse_a_canary() -> None:
    run = canary_of_b()
    assert run.state.canary is not None
    run.state.canary.requests = 100
    run.step("b", a=UP, b=Observation(replicas=1, probe="", requests=3))
    assert (run.state.stable, run.state.canary.requests) == ("a", 3)


def test_a_candidate_keeps_its_share_until_it_takes_over() -> None:
    run = Steps(CANARY).serving("a")
    run.step("a", canary="b", a=UP)
    run.step("a", canary="b", a=UP, b=Observation(replicas=1))
    run.step("a", canary="b", a=UP, b=UP)
    run.step("a", canary="b", a=UP, b=UP)
    assert run.state.canary is not None
    run.step("a", canary="b", a=UP, b=Observation(replicas=1, probe="", requests=50))
    assert (run.state.stable, run.state.canary.version) == ("a", "b"), "it takes over when production is moved, not before"
    run.step("b", a=UP, b=Observation(replicas=1, probe="", requests=60))
    assert (run.state.stable, run.state.canary) == ("b", None)
    run.step("b", canary="c", a=UP, b=UP)
    run.step("b", canary="c", a=UP, b=UP, c=Observation(replicas=1))
    run.step("b", canary="c", a=UP, b=UP, c=UP)
    run.step("b", canary="c", a=UP, b=UP, c=UP)
    assert run.state.canary is not None
    run.step("b", a=UP, b=UP, c=UP)
    assert run.state.canary is None, "withdrawn"


def test_routes_show_who_answers() -> None:
    run = canary_of_b()
    record = {"id": "b.1", "url": "http://127.0.0.1:1", "engine": "command", "slots": 2}
    routes = run.state.build_routes({"b": [record]}, {"a": "run@3"}, ("main@production",), 0.2)
    assert routes.aliases["default"].canary == "b"
    assert (routes.aliases["main@production"].stable, routes.aliases["default"].share) == ("a", 0.2)
    assert (routes.versions["b"].replicas[0].slots, routes.versions["a"].model) == (2, "run@3")
    first = Steps()
    first.step("a")
    early = first.state.build_routes({}, {}, (), 0.0)
    assert early.aliases["default"].stable == "a", "requests wait for the version that loads"


def test_the_load_decides_how_many_replicas(tmp_path: Path) -> None:
    load = tmp_path / "load.json"
    policy = LoadPolicy(str(load), "a", slots=4, busy=0.5)
    now = SimpleNamespace(target_num_replicas=3, capacity_adjusted_min_replicas=1)
    assert policy(now) == (3, {}), "nothing is known: nothing changes"
    for running, queued, wanted in ((0, 0, 1), (2, 0, 1), (2, 1, 2), (4, 9, 7)):
        write_json(load, {"time": time.time(), "versions": {"a": {"running": running, "queued": queued}, "b": {"running": 99}}})
        assert policy(now) == (wanted, {})
    write_json(load, {"time": time.time() - 60, "versions": {"a": {"running": 99}}})
    assert policy(now) == (3, {}), "a gateway that is away says nothing"

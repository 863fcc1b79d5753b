"""A run that serves, with real Ray Serve, a real gateway and engines that are up in no time; one run for the whole module."""

from collections.abc import Iterator

import pytest

from ropewalk.cluster.process.fork_server import FORK_SERVER_VARIABLE
from ropewalk.cluster.run.files import read_json
from ropewalk.jobs.runs.show.diagnose import diagnose
from ropewalk.jobs.runs.show.show import plain
from ropewalk.jobs.runs.show.status import states
from tests.jobs.serving.serve.serving import MODEL, Load, Serving, ask, serving
from tests.patience import until

pytestmark = [pytest.mark.slow]

WORDS = 6


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, alone_with_ray: None) -> Iterator[Serving]:
    home = tmp_path_factory.mktemp("serve")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROPEWALK_RUNS", str(home / "runs"))
        patch.setenv("WANDB_MODE", "disabled")
        patch.delenv(FORK_SERVER_VARIABLE, raising=False)  # nothing that serves here needs torch
        with serving(home, {"words": WORDS, "pause": 0.02}, update={"keep_previous_minutes": 0}) as server:
            yield server


def test_it_answers_and_says_where(run: Serving) -> None:
    assert ask(run.address) == (200, "".join(f"one{number} " for number in range(WORDS)))
    assert ask(run.address, stream=False, model="production")[0] == 200
    shown = plain(run.run)
    assert shown["address"] == run.address
    assert [(row["version"], row["traffic"], row["replicas"]) for row in shown["versions"]] == [(f"{MODEL}@1", "all", 1)]
    text = until(lambda: (record := read_json(run.run.progress)) and "1 replica" in record["words"] and record["words"])
    assert text.startswith(f"{MODEL}@1 at {run.address}, 1 replica, ")


def test_a_broken_version_gets_no_traffic_and_the_alias_goes_back(run: Serving) -> None:
    with Load(run.address, WORDS, clients=3, pause=0.3) as load:
        broken = run.promote("broken", load="bad weights")
        run.until(lambda: run.events("aliases_reverted"))
        run.until(lambda: broken not in run.state["versions"])
        before = load.count
        run.until(lambda: load.count > before + 4)
    assert (load.failures, set(load.answers)) == ([], {"one"})
    (refused,) = run.events("version_refused")
    assert (refused["version"], refused["serves"]) == (broken, f"{MODEL}@1")
    assert "bad weights" in refused["cause"]
    diagnosis = diagnose(run.run, states([run.run])[run.run.id])
    assert any("bad weights" in line for line in diagnosis.evidence)


def test_updates_and_a_killed_controller_fail_no_request(run: Serving) -> None:
    (controller,) = run.processes("ropewalk.jobs.serving.serve.controller ")
    (engine,) = run.processes("fakes/engine.py /")[-1:]
    with Load(run.address, WORDS, clients=3, pause=0.3) as load:
        controller.kill()
        version = run.promote("two", words=WORDS, pause=0.02)
        run.serves(version)
        run.until(lambda: load.answers["two"] > 4)
        run.until(lambda: f"{MODEL}@1" not in run.state["versions"])
        until(lambda: not engine.is_running())
    assert load.failures == []
    assert set(load.answers) == {"one", "two"}
    assert len(run.events("version_loading")) == 3, "the new controller found the application of the old one"


@pytest.mark.soak("Ray starts again; test_updates_and_a_killed_controller_fail_no_request kills a part of the server too")
def test_requests_wait_while_a_killed_ray_is_started_again(run: Serving) -> None:
    (raylet, *_) = run.processes("raylet/raylet ")
    with Load(run.address, WORDS, clients=3, pause=0.3) as load:
        run.until(lambda: load.count > 3)
        raylet.kill()
        run.until(lambda: run.events("ray_restarted"))
        before = load.count
        run.until(lambda: load.count > before + 10)
    assert load.failures == []


def test_asked_to_stop_it_ends_what_is_open(run: Serving) -> None:
    attempt = run.run.attempts()[-1]
    with Load(run.address, WORDS, clients=1, pause=0.05) as load:
        run.until(lambda: load.count)
        run.stop()
        outcome = run.until(lambda: run.run.outcome(attempt))
    assert outcome.exit_code == 85
    assert run.events("serving_stopped")[-1]["open"] == 0
    assert not [failure for failure in load.failures if "cut" in failure], "no stream was cut"

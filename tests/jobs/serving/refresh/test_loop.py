"""The loop's decisions, with steps that are played: what is promoted, what is not, and that a kill changes nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ropewalk.jobs.serving.refresh.loop as loop_module
from ropewalk import jobs
from ropewalk.cluster.config_reader import load_config, read_job_file
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.models.registry.deployments import record_rollout
from ropewalk.jobs.models.registry.promote import promote
from ropewalk.jobs.runs.models.model_versions import RegisteredModel
from ropewalk.jobs.runs.show.tree import family_tree
from ropewalk.jobs.serving.feedback.records import FOLDER, answers_store, exchanges_store, ratings_store
from ropewalk.jobs.serving.refresh.canary import Tally, judge_canary, tallies
from ropewalk.jobs.serving.refresh.config import CanaryConfig, RefreshConfig, TriggerConfig
from ropewalk.jobs.serving.refresh.report import headline
from ropewalk.jobs.serving.refresh.rounds import Round
from ropewalk.jobs.serving.refresh.steps import StepFailedError
from ropewalk.jobs.serving.refresh.trigger import DriftReport, DriftSchedule, DriftState, RefreshTrigger
from tests.jobs.models.registry.registered import judged, trained
from tests.jobs.serving.refresh.staged import NOW, Played, Stage, captured, keep, rated
from tests.jobs.shell import Shell

CANARY = {"minutes": 1, "requests": 20, "most_minutes": 5, "settle_minutes": 1}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROPEWALK_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop_module, "model_directory", lambda version: Path())  # there are no weights
    (tmp_path / "quiz.yaml").touch()
    return tmp_path / "runs"


def moves(stage: Stage, alias: str = "production") -> list[tuple[str, int | None]]:
    return [(move.kind, move.version) for move in RegisteredModel(stage.root, "main").history(alias)]


def steps_of(stage: Stage) -> list[str]:
    return [str(run.record["step"]) for run in RunDir.all(stage.root) if run.record.get("parent") == stage.run.id]


def test_a_good_candidate_is_promoted_with_all_that_speaks_for_it(root: Path) -> None:
    stage = Stage(root)
    (facts,) = stage.drive()
    assert (facts["outcome"], facts["message"]) == ("promoted", "main@2 replaces main@1 as production")
    assert steps_of(stage) == ["1-collect", "1-train", "1-evaluate-candidate", "1-evaluate-production"]
    assert {key: facts["data"][key] for key in ("corrected", "liked", "disliked", "not judged", "new", "pairs")} == {
        "corrected": 3,
        "liked": 3,
        "disliked": 1,
        "not judged": 1,
        "new": 6,
        "pairs": 3,
    }
    assert moves(stage) == [("promote", 1), ("promote", 2)]
    move = RegisteredModel(root, "main").history("production")[-1]
    assert (move.by, move.reason) == (f"refresh:{stage.run.id}", f"round 1 of {stage.run.id}")
    assert move.gates[0]["figures"]["quiz"]["value"] == 0.8
    version = RegisteredModel(root, "main").version(2)
    assert version.lineage["bases"][0]["run"] == RegisteredModel(root, "main").version(1).run
    page = (stage.run.path / "report.html").read_text()
    assert "Round 1" in page
    assert "quiz/acc" in page
    assert "collect feedback" in page
    assert headline(stage.run, [facts]).startswith(f"Round 1 of {stage.run.id}: promoted: main@2")
    states = [member.role for member in family_tree(RunDir.all(root), {run.id for run in RunDir.all(root)}) if member.parent]
    assert "round 1: evaluate the candidate" in states


@pytest.mark.parametrize(
    ("played", "keys", "message"),
    [
        (Played(refused=("evaluate-candidate",)), {}, "quiz is 0.3, and must be >= 0.5"),
        (Played(right={"candidate": 0.5, "production": 0.9}), {}, "quiz/acc: production is better"),
        (
            Played(right={"candidate": 0.86, "production": 0.9}),
            {"gate": {"evaluate": {"tasks": ["quiz.yaml"], "require": {"quiz": ">= 0.5"}}, "margin": {"quiz": 0.01}}},
            "the interval must exclude a loss of more than 0.01",
        ),
        (
            Played(right={"leaks candidate": 0.6, "leaks production": 0.0}),
            {"gate": {"audit": {"memorization": {"canaries": "c.jsonl"}, "require": {"canaries/exposure": "<= 3"}}}},
            "memorized: rose from 0 to 0.6",
        ),
        (
            Played(refused=("audit-candidate",)),
            {"gate": {"audit": {"memorization": {"canaries": "c.jsonl"}, "require": {"canaries/exposure": "<= 3"}}}},
            "its gate refused it",
        ),
    ],
    ids=["its gate", "worse", "perhaps worse", "leaks more", "audit"],
)
def test_a_bad_candidate_never_gets_traffic(root: Path, played: Played, keys: dict[str, Any], message: str) -> None:
    stage = Stage(root, played, **keys)
    (facts,) = stage.drive()
    assert facts["outcome"] == "refused"
    assert message in facts["message"]
    assert (moves(stage), moves(stage, "candidate")) == ([("promote", 1)], [])


def test_too_little_feedback_ends_a_round_before_it_costs_anything(root: Path) -> None:
    stage = Stage(root, least_conversations=7)
    assert stage.drive()[0]["outcome"] == "nothing to learn"
    assert steps_of(stage) == ["1-collect"]


def test_corrections_are_aligned_to_where_there_are_enough(root: Path) -> None:
    stage = Stage(root, align={"steps": 2, "method": "dpo"}, least_pairs=3)
    (facts,) = stage.drive()
    assert "1-align" in steps_of(stage)
    assert facts["candidate"].startswith("fresh-1-align-")


def test_a_person_is_waited_for(root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shell = Shell(capsys, monkeypatch, root.parent)
    for item, outcome in ((("--no", "too rude"), "not approved"), ((), "promoted")):
        stage = Stage(root / (item[-1] if item else "yes"), approve=True)
        monkeypatch.setenv("ROPEWALK_RUNS", str(stage.root))
        assert "does not wait for an approval" in shell.mistake("approve", stage.run.id)

        def answer(stage: Stage = stage, message: tuple[str, ...] = item) -> None:
            if json.loads((stage.run.path / "rounds/0001/round.json").read_text()).get("approval_requested"):
                assert moves(stage, "candidate") == []
                if not stage.run.requests.get("approved"):
                    shell("approve", stage.run.id, "--json", *message)

        stage.waits = answer
        (facts,) = stage.drive()
        assert facts["outcome"] == outcome
    assert facts["approval"]["yes"]


def test_through_a_canary_to_production(root: Path) -> None:
    stage = Stage(root, canary=CANARY)

    def serve() -> None:
        current = RegisteredModel(root, "main").aliases()
        if "candidate" in current:
            stage.answer("main@2", 5)
            stage.answer("main@1", 30)
        if current["production"].number == 2:
            record_rollout(root, "main@2", "production", "serving", by=f"serve:{stage.served.id}")

    stage.waits = serve
    (facts,) = stage.drive()
    assert facts["outcome"] == "promoted"
    assert facts["message"].endswith(f"{stage.served.id} serves it")
    assert facts["canary"]["candidate"]["answers"] >= 20
    assert moves(stage, "candidate") == [("promote", 2), ("withdraw", None)]


def test_a_canary_that_fails_is_withdrawn(root: Path) -> None:
    stage = Stage(root, canary=CANARY)
    stage.waits = lambda: stage.answer("main@2", 4, errors=2)
    (facts,) = stage.drive()
    assert facts["outcome"] == "refused by its canary"
    assert "of its 4 answers failed" in facts["message"]
    assert moves(stage) == [("promote", 1)]
    assert moves(stage, "candidate") == [("promote", 2), ("withdraw", None)]


def test_what_the_serving_run_refuses_is_rolled_back(root: Path) -> None:
    stage = Stage(root, canary={**CANARY, "requests": 0, "minutes": 0})

    def serve() -> None:
        if RegisteredModel(root, "main").aliases()["production"].number == 2:
            record_rollout(root, "main@2", "production", "refused", "it does not load", by=f"serve:{stage.served.id}")

    stage.waits = serve
    (facts,) = stage.drive()
    assert (facts["outcome"], facts["message"]) == ("rolled back", "the serving run refused it: it does not load")
    assert moves(stage) == [("promote", 1), ("promote", 2), ("rollback", 1)]


def test_nobody_serves_it_and_it_stays_a_candidate(root: Path) -> None:
    stage = Stage(root, canary=CANARY)
    stage.served.write_outcome(1, Outcome(state=RunState.CANCELLED, exit_code=0, cause="cancelled"))
    (facts,) = stage.drive()
    assert facts["outcome"] == "held"
    assert moves(stage, "candidate") == [("promote", 2)]


def test_whoever_promotes_by_hand_meanwhile_is_not_overruled(root: Path) -> None:
    stage = Stage(root, canary=CANARY)
    other = trained(root)
    judged(root, other.id)

    def by_hand() -> None:
        if RegisteredModel(root, "main").aliases()["production"].number == 1:
            promote(other.id, root=root)
        stage.answer("main@2", 10)

    stage.waits = by_hand
    (facts,) = stage.drive()
    assert facts["outcome"] == "not promoted"
    assert "was moved by someone else" in facts["message"]
    assert [version for _, version in moves(stage)][:1] == [1]
    assert RegisteredModel(root, "main").current("production").run == other.id  # type: ignore[union-attr]


def test_a_step_that_fails_ends_the_run_and_is_tried_again_when_it_is_resumed(root: Path) -> None:
    stage = Stage(root, Played(failed=("train",)))
    with pytest.raises(StepFailedError, match=f"out of memory.*ropewalk resume {stage.run.id}"):
        stage.drive()
    stage.played.failed = ()
    assert stage.drive()[0]["outcome"] == "promoted"
    assert stage.played.calls[:3] == [("submit", "collect"), ("submit", "train"), ("resume", "train")]


def test_rounds_go_on_from_what_was_promoted(root: Path) -> None:
    stage = Stage(root, rounds=2, least_conversations=6)
    first, second = stage.drive()
    assert (second["base"], second["outcome"]) == (first["version"], "nothing to learn")


@pytest.mark.parametrize(
    ("played", "keys", "outcome"),
    [
        (Played(refused=("evaluate-candidate",)), {}, "refused"),
        (Played(), {"least_conversations": 7}, "nothing to learn"),
    ],
)
def test_feedback_begins_one_round_whatever_becomes_of_it(root: Path, played: Played, keys: dict[str, Any], outcome: str) -> None:
    stage = Stage(root, played, rounds=2, trigger={"feedback": 7, "look_seconds": 0.001}, **keys)
    messages: list[Any] = []

    def tell() -> None:
        if (stage.run.path / "rounds/0002").is_dir() and not messages:
            messages.extend(rated(100 + n, rating="up", time=stage.now) for n in range(7))
            keep(ratings_store(stage.served.path / FOLDER), messages)

    stage.waits = tell
    first, second = stage.drive()
    assert first["outcome"] == second["outcome"] == outcome
    assert second["trigger"]["time"] > second["waiting_since"], "it waits for feedback that is new"
    assert (second["trigger"]["figures"]["ratings"], second["data"]["corrected"]) == (7, 3), (
        "and learns from what came before, too"
    )


def test_all_rounds_together_are_one_series_of_looks_for_drift(root: Path) -> None:
    drift = {"reference": "x.jsonl", "every_hours": 0.1}
    stage = Stage(root, Played(refused=("evaluate-candidate",)), rounds=2, trigger={"drift": drift, "look_seconds": 0.001})
    stage.drift = lambda state: DriftReport(True, "Dutch", {"looked": state.get("looked", 0) + 1}, {})
    first, second = stage.drive()
    assert second["drift_checks"]["state"] == {"looked": 2}
    assert second["trigger"]["time"] - first["trigger"]["time"] >= 360


class KilledError(BaseException):
    """A simulated kill: no code catches it."""


EFFECTS: tuple[tuple[Any, str], ...] = ((Round, "record"), (Played, "ask"), (loop_module, "promote"), (loop_module, "register"))


@pytest.mark.parametrize(
    "stride", [23, pytest.param(1, marks=pytest.mark.soak("a kill at every effect; make test kills at every 23rd"))]
)
def test_killed_before_and_after_each_effect_it_ends_the_same(
    stride: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop_module, "model_directory", lambda version: Path())
    (tmp_path / "quiz.yaml").touch()
    calls, kill_at = 0, -1

    def counted(action: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == kill_at:
                raise KilledError
            result = action(*args, **kwargs)
            calls += 1
            if calls == kill_at:
                raise KilledError
            return result

        return call

    for owner, name in EFFECTS:
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    endings = []
    while not endings or calls >= kill_at:
        calls, kill_at = 0, kill_at + stride if endings else -1
        root = tmp_path / f"runs-{kill_at}"
        monkeypatch.setenv("ROPEWALK_RUNS", str(root))
        stage = Stage(root, canary={**CANARY, "requests": 0, "minutes": 0, "settle_minutes": 0})
        try:
            stage.drive()
        except KilledError:
            stage.drive()
        facts = json.loads((stage.run.path / "rounds/0001/round.json").read_text())
        endings.append((facts["outcome"], steps_of(stage), moves(stage), moves(stage, "candidate"), sorted(facts)))
        kill_at = max(kill_at, 0)
    assert len(endings) > 40 // stride
    assert all(ending == endings[0] for ending in endings)


@pytest.mark.parametrize(
    ("candidate", "production", "minutes", "state"),
    [
        (Tally(answers=5), Tally(answers=90), 2, None),
        (Tally(answers=50), Tally(), 0.5, None),
        (Tally(answers=50, errors=1), Tally(), 2, "passed"),
        (Tally(answers=50, errors=2), Tally(), 2, "refused"),
        (Tally(answers=2), Tally(), 31, "passed"),
        (Tally(), Tally(), 31, "passed"),
        (Tally(answers=1, errors=1), Tally(), 29, None),
        (Tally(answers=1, errors=1), Tally(), 31, "refused"),
        (Tally(answers=49, errors=1), Tally(), 31, "refused"),
        (Tally(answers=50, liked=2, disliked=30), Tally(liked=40, disliked=5), 0.1, "refused"),
        (Tally(answers=50, liked=2, disliked=5), Tally(liked=40, disliked=5), 2, "passed"),
    ],
)
def test_what_a_canary_is_judged_by(candidate: Tally, production: Tally, minutes: float, state: str | None) -> None:
    config = CanaryConfig(minutes=1, requests=50, most_minutes=30, max_error_rate=0.02)
    result = judge_canary(config, candidate, production, 60 * minutes)
    assert (result.state if result else None) == state


def test_a_conversation_is_liked_once(root: Path) -> None:
    """Twelve turns of one conversation that is disliked are no twelve people."""
    served = Stage(root).served
    turns = {"main@2": ["c1"] * 12 + ["c2", "c3", None, None], "main@1": [f"d{number}" for number in range(12)]}
    texts = {"main@2": ["down"] * 12 + ["up", "down", "up", "up"], "main@1": ["up"] * 12}
    rows = [
        {**captured(100 * position + n, "Hi?", "Hi.", version=version, time=NOW + n), "conversation": conversation}
        for position, version in enumerate(turns, 1)
        for n, conversation in enumerate(turns[version])
    ]
    keep(answers_store(served.path / FOLDER), rows)
    keep(exchanges_store(served.path / FOLDER), [row for row in rows if row["conversation"]])
    messages = [
        rated(100 * position + n, rating=word)
        for position, version in enumerate(texts, 1)
        for n, word in enumerate(texts[version])
    ]
    keep(ratings_store(served.path / FOLDER), [{**item, "time": NOW + 50} for item in messages])
    candidate, production = tallies(served, ("main@2", "main@1"), NOW)
    assert (candidate.answers, candidate.liked, candidate.disliked) == (16, 3, 2), "what is not captured counts by itself"
    assert (production.answers, production.liked, production.disliked) == (12, 12, 0)


def test_what_begins_a_round(root: Path) -> None:
    stage = Stage(root)
    schedule = DriftSchedule()

    def drift(state: DriftState) -> DriftReport:
        looked = state.get("looked", 0) + 1
        return DriftReport(looked == 3, "the prompts are in Dutch", {"looked": looked}, {})

    def why(hours: float, **keys: Any) -> str | None:
        trigger = RefreshTrigger(TriggerConfig(**keys), stage.served, drift, lambda: NOW + hours * 3600)
        reason = trigger.due(NOW, None, schedule)
        return reason.kind if reason else None

    assert why(0) == "start"
    assert [why(hours, every_hours=2) for hours in (1.9, 2)] == [None, "schedule"]
    again = [{**rated(6, rating="up"), "id": f"again-{n}"} for n in range(20)]
    keep(ratings_store(stage.served.path / FOLDER), again)  # of one answer
    assert [why(0, feedback=count) for count in (8, 7)] == [None, "feedback"]
    drifting = {"drift": {"reference": "x.jsonl", "every_hours": 24}}
    assert [why(hours, **drifting) for hours in (0, 1, 24, 47, 48)] == [None, None, None, None, "drift"]
    assert schedule.state == {"looked": 3}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"gate": {"evaluate": {"tasks": ["quiz.yaml"]}}}, "a gate is required"),
        ({"train": {"steps": 4, "stepz": 1}}, "train: unknown key 'stepz'"),
        ({"train": {"steps": 4, "data": "x"}}, "train.data: is set by the refresh"),
        ({"model": "main@3"}, "is a version, which never changes"),
        ({"replay": {"share": 0.2}}, "replay.data"),
    ],
)
def test_mistakes_are_told_at_submission(root: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Stage(root, **keys).config.resolved()


def test_the_alias_must_be_there(root: Path) -> None:
    config = RefreshConfig.model_validate(
        {"watch": "x", **Stage(root).config.model_dump(exclude={"watch", "model"}), "model": "chat"}
    )
    with pytest.raises(ConfigError, match="there is no alias 'chat'"):
        config.preflight()


def test_the_example_is_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(root)
    folder = Path(jobs.__file__).parent / "configs/refresh.yaml"
    config = load_config(RefreshConfig, {**read_job_file(folder, "refresh"), "watch": stage.served.id})
    assert config.resolved().rounds is None
    assert {step.wandb.tables for step in config.example_configs().values()} == {"figures"}, "no texts of users leave the runs"
    quiet = config.model_copy(update={"train": {**config.train, "wandb": {"tables": "none", "project": "mine"}}})
    assert quiet.example_configs()["train"].wandb.model_dump(include={"tables", "project", "group"}) == {
        **{"tables": "none", "project": "mine", "group": "/to-come"}
    }


def test_old_versions_are_removed_after_a_round(root: Path) -> None:
    stage = Stage(root, registry={"keep": 1})
    for _ in range(2):  # main@2 and main@3
        promote(trained(root).id, root=root, force="a test")
    (facts,) = stage.drive()
    assert facts["outcome"] == "promoted"
    present = [version.number for version in RegisteredModel(root, "main").versions() if version.removed is None]
    assert present == [3, 4], "the newest, and the one that a rollback goes to"
    (event,) = [event for event in stage.run.read_events() if event["event"] == "versions_removed"]
    assert event["versions"] == "main@1, main@2"

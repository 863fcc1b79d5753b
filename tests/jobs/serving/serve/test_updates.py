"""Twenty updates under load, every second one broken in another way."""

from pathlib import Path

import pytest

from ropewalk.cluster.run.files import write_json
from tests.jobs.serving.serve.serving import MODEL, Load, serving
from tests.patience import Patience

pytestmark = [
    pytest.mark.soak("ten minutes; test_serving.py runs one update and a broken one"),
    pytest.mark.timeout(3600),
    pytest.mark.usefixtures("alone_with_ray"),
]

WORDS = 12
CANARY = {"share": 0.3, "requests": 12, "minutes": 5, "max_error_rate": 0.05}
BROKEN = (
    {"load": "bad weights"},
    {"answer": "NaN in the logits"},
    {"load": "no such tensor"},
    {"answer": "out of memory"},
    {"hang": True},
)
UPDATES = 20
GOES_BACK_SECONDS = 5.0


def test_twenty_updates_ten_of_them_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROPEWALK_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    keys = {"replicas": 2, "canary": CANARY, "update": {"keep_previous_minutes": 0, "start_minutes": 1}}
    with serving(tmp_path, {"words": WORDS, "pause": 0.03}, **keys) as run:
        good, back = f"{MODEL}@1", list[float]()
        with Load(run.address, WORDS, clients=4, pause=0.05) as load:
            for number in range(1, UPDATES + 1):
                broken = number % 2 == 1
                more = BROKEN[number // 2 % len(BROKEN)] if broken else {}
                version = run.promote(f"model{'abcdefghijklmnopqrst'[number - 1]}", words=WORDS, pause=0.03, **more)
                if broken:
                    message = run.until(lambda version=version: _of(run.events("aliases_reverted"), version), Patience.CLUSTER)
                    refused = _of(run.events("version_refused"), version)
                    assert refused is not None
                    back.append(message["time"] - refused["time"])
                    assert run.state["stable"] == good
                else:
                    run.until(lambda version=version: run.state["stable"] == version, Patience.CLUSTER)
                    good = version
                before = load.count
                run.until(lambda before=before: load.count > before + 8)
        facts = {"answers": load.count, "by_model": dict(load.answers), "failures": load.failures[:20], "back_seconds": back}
        write_json(tmp_path / "updates.json", facts)
        print(facts)
        assert load.failures == []
        assert len(back) == UPDATES // 2
        assert max(back) < GOES_BACK_SECONDS


def _of(events: list[dict[str, object]], version: str) -> dict[str, float] | None:
    results = [event for event in events if event["version"] == version]
    return results[-1] if results else None  # type: ignore[return-value]

"""Quality by ratings and by probes, and looks week after week."""

import json
from pathlib import Path

import numpy as np
import pytest

from ropewalk.cluster.errors import DataError
from ropewalk.jobs.serving.drift.monitor import Monitor
from ropewalk.jobs.serving.drift.quality import compare_probes, compare_ratings, read_probes


def test_two_shares_of_good_ratings_have_newcombes_interval() -> None:
    result = compare_ratings([1] * 56 + [-1] * 14, [1] * 48 + [-1] * 32)  # the example of Newcombe (1998), table II (a)
    assert result is not None
    assert result.interval == pytest.approx((0.0524, 0.3339), abs=1e-4)
    assert not result.worse
    worse = compare_ratings([1] * 48 + [-1] * 32, [1] * 56 + [-1] * 14)
    assert worse is not None
    assert worse.worse
    assert worse.plain()["worse"] is True
    assert compare_ratings([], [1]) is None


def test_probes_are_compared_question_by_question(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    before = {f"q{number}": float(random.random()) for number in range(40)}
    now = {item: score - 0.1 + 0.01 * float(random.standard_normal()) for item, score in before.items()} | {"new": 1.0}
    result = compare_probes(now, before)
    assert result.better == "second"
    assert result.n == 40
    with pytest.raises(DataError, match="no question in common"):
        compare_probes({"a": 1.0}, {"b": 1.0})
    file = tmp_path / "probes.jsonl"
    file.write_text("".join(json.dumps({"item": item, "value": value}) + "\n" for item, value in before.items()))
    assert read_probes(file) == before
    items = tmp_path / "run" / "evaluation" / "items.jsonl"
    items.parent.mkdir(parents=True)
    items.write_text(json.dumps({"task": "boolq", "item": 3, "values": {"acc": 1.0}}) + "\n")
    assert read_probes(tmp_path / "run") == {"boolq/3/acc": 1.0}
    with pytest.raises(DataError, match="no such file"):
        read_probes(tmp_path / "none")
    file.write_text('{"question": 1}\n')
    with pytest.raises(DataError, match="neither"):
        read_probes(file)


def test_a_hundred_looks_share_one_rate_of_false_alarms() -> None:
    random = np.random.default_rng(0)
    series = [any(monitor.look(float(p), 0.0).alarm for p in random.random(100)) for monitor in (Monitor() for _ in range(300))]
    assert 0.015 <= np.mean(series) <= 0.08
    same = [
        any(monitor.look(float(p), 0.0).alarm for _ in range(100))
        for monitor, p in zip((Monitor() for _ in range(300)), random.random(300), strict=True)
    ]
    assert np.mean(same) <= 0.05  # looks that are all one and the same
    monitor = Monitor()
    assert sum(monitor.look(1.0, 0.0).level for _ in range(300)) <= 0.05


def test_a_monitor_goes_on_where_it_was() -> None:
    monitor = Monitor(horizon=2)
    assert [monitor.look(0.02, 1.0).alarm, monitor.look(0.5, 2.0).alarm] == [True, False]
    again = Monitor.of(json.loads(json.dumps(monitor.plain())), horizon=50)
    assert again == monitor
    assert again.level == pytest.approx(0.05 * 0.9 * 0.1 / 2)
    assert 4 / (again.permutations + 1) <= again.level
    assert Monitor.of(None).looks == []

"""`ropewalk drift`: what a user names is found, what differs is told, with a page and JSON."""

import json
import stat
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from ropewalk.cluster.errors import ConfigError, DataError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.serving.drift.config import DriftConfig
from ropewalk.jobs.serving.drift.detect import detect
from ropewalk.jobs.serving.drift.monitor import Monitor
from ropewalk.jobs.serving.drift.page import write_report
from ropewalk.jobs.serving.drift.sample import Sample, draw
from ropewalk.jobs.serving.drift.sources import open_sample
from ropewalk.jobs.serving.feedback.exchange import Exchange
from tests.fakes.documents import make, write_lines
from tests.jobs.serving.drift.texts import asked
from tests.jobs.serving.feedback.exchanges import START, exchange
from tests.jobs.serving.feedback.runs import serving_run
from tests.jobs.shell import Shell


def test_the_command_tells_what_differs_and_writes_a_page(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(Path("before.jsonl"), [{"text": text} for text in asked("ropes", 200, 1)])
    now = [{"messages": [{"role": "user", "content": text}]} for text in asked("ropes", 70, 2) + asked("bread", 50, 2)]
    write_lines(Path("now.jsonl"), [*now, {"nothing": 1}, {"text": " "}])
    write_lines(Path("a.jsonl"), [{"item": str(number), "value": number % 2} for number in range(20)])
    arguments = ["drift", "now.jsonl", "before.jsonl", "--rounds", "3", "--texts", "120", "--probes", "a.jsonl", "a.jsonl"]
    output = shell(*arguments)
    assert "now.jsonl differs from before.jsonl in" in output
    assert "Probe set: +0 over 20 questions, no significant difference." in output
    page = (tmp_path / "drift/drift.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert "2 records without text were skipped" in page
    assert json.loads((tmp_path / "drift/drift.json").read_text())["calibration"]["false_alarms"]["tries"] == 3
    answer = json.loads(shell("drift", "now.jsonl", "before.jsonl", "--rounds", "0", "--texts", "120", "--json").splitlines()[-1])
    assert answer["alarm"] is True
    assert answer["tests"]["embedding"]["adjusted"] <= 0.05
    assert answer["current"] == {**answer["current"], "texts": 120, "skipped": 2}
    assert answer["share"]["at_least"] > 0.05
    assert answer["calibration"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jsonl", "few.jsonl"], "neither a file, a data set nor a run"),
        (["few.jsonl", "few.jsonl"], "3 texts are too few to compare; at least 50"),
        (["few.jsonl", "few.jsonl", "--alpha", "2"], "--alpha"),
        (["none.jsonl", "few.jsonl"], "holds no text"),
        (["*.nothing", "few.jsonl"], "matches no file"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(Path("few.jsonl"), [{"text": text} for text in asked("ropes", 3, 1)])
    write_lines(Path("none.jsonl"), [{"x": 1}])
    assert message in shell.mistake("drift", *arguments)


def test_texts_of_everything_that_a_user_names(tmp_path: Path) -> None:
    texts = asked("ropes", 60, 1)
    write_lines(tmp_path / "a.jsonl", [{"prompt": text, "completion": "yes"} for text in texts[:30]])
    chats = [[{"role": "user", "content": text}, {"role": "assistant", "content": "no"}] for text in texts[30:]]
    parquet.write_table(pa.table({"messages": chats}), tmp_path / "b.parquet")
    result = open_sample(f"{tmp_path}/[ab].*", limit=100)
    assert sorted(result.texts) == sorted(texts)
    write_lines(tmp_path / "docs.jsonl", [{"id": str(n), "text": text} for n, text in enumerate(texts)])
    make(tmp_path / "docs.jsonl", tmp_path / "data", validation_fraction=0.0)
    data = open_sample(str(tmp_path / "data"), limit=100)
    assert sorted(data.texts) == sorted(set(texts))
    some = open_sample(str(tmp_path / "data"), limit=7)
    assert len(some.texts) == 7
    assert set(some.texts) < set(texts)
    config = {"data": [{"path": str(tmp_path / "data"), "weight": 1.0}, {"path": str(tmp_path / "docs.jsonl"), "weight": 1.0}]}
    run = RunDir.create("t", {"job": "pretrain", "config": config}, tmp_path / "runs")
    trained = open_sample(run.id, limit=1000, root=tmp_path / "runs")
    assert trained.total == data.total + 60
    other = RunDir.create("t", {"job": "preprocess", "config": {}}, tmp_path / "runs")
    with pytest.raises(ConfigError, match="without `data`"):
        open_sample(other.id, limit=10, root=tmp_path / "runs")
    with pytest.raises(DataError, match="no text"):
        open_sample(str(write_lines(tmp_path / "c.jsonl", [{"prompt": 3}])), limit=10)


def test_each_text_is_drawn_as_often_as_any_other() -> None:
    times = [0] * 20
    for seed in range(400):
        remaining, total = draw(range(20), 5, seed)
        assert total == 20
        assert list(remaining) == sorted(remaining)
        for item in remaining:
            times[item] += 1
    assert min(times) > 65
    assert max(times) < 140


def test_ratings_and_looks_are_in_the_report(tmp_path: Path) -> None:
    now = Sample(
        name="now", texts=tuple(["hello there, how are you?"] * 10 + asked("ropes", 50, 3)), total=60, ratings=(1, -1) * 20
    )
    before = Sample(name="before", texts=tuple(asked("ropes", 80, 1)), total=80, ratings=(1,) * 40)
    monitor = Monitor()
    result = detect(now, before, DriftConfig(rounds=0), permutations=monitor.permutations)
    monitor.look(result.p)
    assert result.ratings is not None
    assert result.ratings.worse
    report = write_report(result, tmp_path, monitor=monitor)
    page = report.read_text()
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (report, tmp_path / "drift.json")]
    assert modes == [0o600, 0o600], "it shows what users wrote"
    assert "are copies of one text" in page
    assert "The smallest detectable drift was not measured: rounds is 0." in page
    assert "Monitoring" in page
    assert len(json.loads((tmp_path / "drift.json").read_text())["monitor"]["looks"]) == 1


def test_what_a_serving_run_was_asked_week_by_week(tmp_path: Path) -> None:
    def at(number: int, text: str, days: float) -> Exchange:
        return exchange(
            number, time=START + days * 86400, request=json.dumps({"messages": [{"role": "user", "content": text}]}).encode()
        )

    texts = asked("ropes", 20, 1)
    exchanges = [at(number, text, days=float(number)) for number, text in enumerate(texts)]
    again = [at(100 + number, text, days=19.5) for number, text in enumerate(texts[:3])]  # those conversations go on
    run = serving_run(tmp_path, [*exchanges, *again], [{"answer_id": "req-000018", "rating": "down"}])
    root, now = run.path.parent, START + 20 * 86400
    assert open_sample(run.id, limit=100, root=root, now=now).texts == tuple(texts)
    week = open_sample(f"{run.id}@7d", limit=100, root=root, now=now)
    assert set(week.texts[:7]) == set(texts[13:])
    assert week.ratings == (-1,)
    before = open_sample(f"{run.id}@2w..1w", limit=100, root=root, now=now)
    assert before.texts == tuple(texts[6:13])
    assert before.ratings == ()
    with pytest.raises(DataError, match="received no requests"):
        open_sample(f"{run.id}@1h", limit=100, root=root, now=now + 86400)


def test_a_conversation_rates_once(tmp_path: Path) -> None:
    """One user who likes ten turns of one conversation is one user."""

    def turn(number: int, text: str) -> Exchange:
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "."}, {"role": "user", "content": "?"}]
        return exchange(number, time=START + number, request=json.dumps({"messages": messages}).encode())

    texts = ["one"] * 10 + ["two"] * 3 + ["three"] + ["four"] * 2
    ratings = ["up"] * 10 + ["down", "up", "down"] + ["down"] + ["up", "down"]
    run = serving_run(
        tmp_path,
        [turn(number, text) for number, text in enumerate(texts)],
        [{"answer_id": f"req-{number:06d}", "rating": word} for number, word in enumerate(ratings)],
    )
    result = open_sample(run.id, limit=100, root=run.path.parent, now=START + 86400)
    assert result.ratings == (1, -1, -1), "most of a conversation decide; one that is divided says nothing"

"""Alerts of every cause, tables, pictures and weights in W&B, each sent once by the real wandb-core."""

import json
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import write_json
from ropewalk.jobs.results.readable import MOST_ROWS, add_rows, read_table, write_picture, write_table
from ropewalk.jobs.runs.mirror.mirror import send_rest
from ropewalk.jobs.runs.models import inputs as lineage
from ropewalk.jobs.runs.notify.alerts import alerts
from tests.fakes.wandb_server import WandbServer
from tests.jobs.runs.mirror.planted import CAUSES
from tests.jobs.runs.mirror.test_relay import end, log_steps, make_run


@pytest.mark.parametrize("title", CAUSES)
def test_every_cause_is_one_alert_with_a_command_to_type(title: str, tmp_path: Path) -> None:
    run = CAUSES[title](tmp_path)
    (alert,) = alerts(run, run.last_outcome())
    assert alert.title == f"{title}: {run.id}"
    assert f"`ropewalk {'show' if title == 'sweep finished' else 'why'} {run.id}`" in alert.text
    assert alert.serious == (title not in {"stopped early", "sweep finished"})


@pytest.mark.soak("eight W&B runs opened twice; make test runs test_every_cause_is_one_alert_with_a_command_to_type")
@pytest.mark.parametrize("title", CAUSES)
def test_planted_twice_it_is_told_once(title: str, wandb_server: WandbServer, tmp_path: Path) -> None:
    run = CAUSES[title](tmp_path / "runs")
    for _ in range(2):
        (run.wandb / "online.json").unlink(missing_ok=True)  # as if nobody knew that all is sent
        for event in run.read_events():  # the same again, as a resumed attempt tells it
            run.event(event["event"], **{key: value for key, value in event.items() if key not in {"event", "time"}})
        send_rest(run)
    assert [alert["title"] for alert in wandb_server.run(run.id).alerts] == [f"{title}: {run.id}"]


def test_tables_and_pictures_are_shown_and_weights_uploaded_where_that_is_wanted(
    wandb_server: WandbServer, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "runs", "read", wandb={"upload": "best"})
    log_steps(run, range(1, 11))
    for step in (5, 10):
        folder = run.checkpoints / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
        (folder / "weights.bin").write_bytes(b"w" * step)
    prepared = tmp_path / "runs/.prepared/chats"
    prepared.mkdir(parents=True)
    (prepared / "manifest.json").write_text('{"documents": 3}')
    write_json(run.path / "data.json", {"path": "../.prepared/chats", "hash": "xxh3:0"})
    write_table(run.path, "samples", ("step", "prompt", "text"), [(5, "Once", "upon \ud800"), (10, None, {"a": 1})])
    Image.new("RGB", (4, 4)).save(png := BytesIO(), "PNG")
    write_picture(run.path, "dropped", png.getvalue())
    end(run)
    send_rest(run)
    served = wandb_server.run(run.id)
    assert served.summary["tables/samples"]["nrows"] == 2
    assert served.summary["pictures/dropped"]["format"] == "png"
    uploads = {name: raw for name, raw in wandb_server.files.items() if name.startswith(f"{run.id}/media/")}
    (table,) = [json.loads(raw) for name, raw in uploads.items() if name.endswith(".table.json")]
    assert table["data"] == [[5, "Once", "upon ?"], [10, None, '{"a": 1}']]
    assert [raw[:4] for name, raw in uploads.items() if name.endswith(".png")] == [b"\x89PNG"]
    weights = {name: raw for name, raw in wandb_server.files.items() if name.endswith("weights.bin")}
    assert list(weights.values()) == [b"w" * 10], "the best by validation loss alone"
    assert [name.split("-")[0] for name in served.used] == ["data"], "the prepared data set"
    assert [line["train/step"] for line in served.history if "train/loss" in line] == list(range(1, 11))
    created = len(served.artifacts_made)
    write_table(run.path, "samples", ("step", "prompt", "text"), [(15, "Once", "more")])
    (run.wandb / "online.json").unlink()
    send_rest(run)
    assert served.summary["tables/samples"]["nrows"] == 1
    assert len(served.artifacts_made) == created + 1, "the table anew, and nothing else"
    assert served.rewritten == 0


@pytest.mark.parametrize(("tables", "sent"), [("none", []), ("figures", ["pictures/p", "tables/scores"]), (None, None)])
def test_of_captured_conversations_only_figures_are_sent(
    wandb_server: WandbServer, tmp_path: Path, tables: str | None, sent: list[str] | None
) -> None:
    """Unless `wandb.tables` says otherwise; also where the data set was prepared from what was collected."""
    root = tmp_path / "runs"
    collected = RunDir.create("collect", {"job": "collect"}, root)
    (collected.path / "data").mkdir()
    chats = collected.path / "data/conversations.jsonl"
    chats.write_text("{}")
    config = {} if tables == "none" else {"data": [str(chats)]}
    run = make_run(root, "read", wandb={"tables": tables}, **config)
    assert lineage.reads_captured(run) == (tables != "none")
    log_steps(run, range(1, 3))
    write_table(run.path, "chats", ("conversation", "tokens"), [("I am Ann Smith", 4)])
    write_table(run.path, "scores", ("task", "value"), [("quiz", 0.5)], figures=True)
    Image.new("RGB", (4, 4)).save(png := BytesIO(), "PNG")
    write_picture(run.path, "p", png.getvalue())
    (run.path / "code.diff").write_text("+ secret")
    end(run)
    send_rest(run)
    shown = sorted(key for key in wandb_server.run(run.id).summary if key.startswith(("tables/", "pictures/")))
    assert shown == (["pictures/p", "tables/scores"] if sent is None else sent)
    uploaded = b"".join(raw for name, raw in wandb_server.files.items() if name.startswith(f"{run.id}/"))
    assert b"Ann Smith" not in uploaded
    assert (b"+ secret" in uploaded) == (tables != "none")


def test_all_checkpoints_or_the_best_are_uploaded(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "u")
    assert lineage.checkpoints_to_upload(run, only_best=True) == []
    for step in (3, 5, 7):
        (run.checkpoints / f"step-{step:08d}").mkdir(parents=True)
        (run.checkpoints / f"step-{step:08d}/manifest.json").write_text("{}")
    assert [step for step, _ in lineage.checkpoints_to_upload(run, only_best=True)] == [7], "nothing was validated"
    log_steps(run, range(1, 8))
    assert [step for step, _ in lineage.checkpoints_to_upload(run, only_best=True)] == [5]
    assert [step for step, _ in lineage.checkpoints_to_upload(run, only_best=False)] == [3, 5, 7]


def test_rows_are_added_to_a_table_and_replace_those_of_the_same_key(tmp_path: Path) -> None:
    for step in (1, 2, 2):
        add_rows(tmp_path, "samples", ("step", "text"), [(step, f"a{step}"), (step, "b")], key="step")
    table = read_table(tmp_path / "tables/samples.json")
    assert table is not None
    assert table.rows == [[1, "a1"], [1, "b"], [2, "a2"], [2, "b"]]
    write_table(tmp_path, "long", ("n",), [(n,) for n in range(MOST_ROWS + 5)])
    long = read_table(tmp_path / "tables/long.json")
    assert long is not None
    assert long.rows[0] == [5]
    (tmp_path / "tables/odd.json").write_text("[]")
    assert read_table(tmp_path / "tables/odd.json") is None

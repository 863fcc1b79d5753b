"""Jobs that name models, tokenizers, data and task files on the hub: pinned in the run, fetched before it starts."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import huggingface_hub
import pytest
import yaml

from ropewalk.cluster.hub import source as hub_source
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import RunState
from tests.documents import files
from tests.fakes.hub import COMMIT, FakeHub, serving
from tests.fakes.token_files import write_dataset
from tests.jobs.shell import Shell, pretrain
from tests.jobs.training.finetune.chats import chats, make_base, write_lines
from tests.patience import Patience, until

if TYPE_CHECKING:
    from tests.conftest import S3Server

URL = "{repo_id}/resolve/{revision}/{filename}"
MIB = 1 << 20


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[FakeHub]:
    source = tmp_path / "source"
    repositories = {"models/org/base": contents(make_base(source / "base"))}
    capsys.readouterr()  # transformers writes a progress bar
    write_lines(source / "chats.jsonl", chats(60))
    repositories["datasets/org/chats"] = {"data/train.jsonl": (source / "chats.jsonl").read_bytes(), "data/test.jsonl": b"{}\n"}
    write_dataset(source / "tokens", [5000], [600])
    repositories["datasets/org/tokens"] = contents(source / "tokens")
    repositories["datasets/org/boolq"] = {"data/validation.jsonl": b"{}\n", "data/train.jsonl": b"{}\n"}
    with serving(FakeHub(repositories)) as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        for name, value in {
            "ENDPOINT": fake.address,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_CACHE": str(tmp_path / "hf/hub"),
            "HUGGINGFACE_CO_URL_TEMPLATE": f"{fake.address}/{URL}",
        }.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        yield fake


def stored(shell: Shell, path: str) -> str:
    return str(shell.home / "runs/.hub" / path)


def only_run(shell: Shell) -> RunDir:
    (run,) = RunDir.all(shell.home / "runs")
    return run


def fall_silent(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.faults.silent = True
    monkeypatch.setattr(hub_source, "HUB_SECONDS", 1.0)


def test_a_model_and_conversations_of_the_hub_are_trained_without_a_network(
    shell: Shell, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ("model.path=org/base@main", "data=org/chats", "steps=2", "seq_len=96", "batch={global_batch: 4, micro_batch: 2}")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    shell("run", "finetune", *keys, "wandb.alerts=none")
    assert "fetch org/base@main: 0 B of" in shell.err
    run = only_run(shell)
    assert run.last_outcome().state is RunState.SUCCEEDED  # type: ignore[union-attr]
    assert run.record["config"]["model"]["path"] == stored(shell, f"models/org/base@{COMMIT}")
    assert run.record["config"]["data"] == [stored(shell, f"data/org/chats@{COMMIT}")]
    assert {item["key"]: item["name"] for item in run.record["fetched"]} == {
        "model.path": f"hf://org/base@{COMMIT}",
        "data": f"hf://datasets/org/chats@{COMMIT}",
    }
    assert run.record["offline"] is True
    assert sum(path.startswith("/api/") for path in hub.requests) == 2, "a name is looked up by one request"
    fall_silent(hub, monkeypatch)
    again = json.loads(shell("fetch", "finetune", "model.path=org/base@main", "data=org/chats", "steps=2", "--json"))
    assert [item["path"] for item in again] == [run.record["config"]["model"]["path"], *run.record["config"]["data"]]
    assert "the hub cannot be reached (no answer within 1 s); using version 0123456789ab, which is here" in shell.err


def test_every_kind_of_key_takes_a_name(shell: Shell, hub: FakeHub) -> None:
    def fetched(*arguments: str) -> dict[str, str]:
        return {item["key"]: item["path"] for item in json.loads(shell("fetch", *arguments, "--json"))}

    base, tokens = stored(shell, f"models/org/base@{COMMIT}"), stored(shell, f"data-sets/org/tokens@{COMMIT}")
    assert fetched(*pretrain("data=org/tokens", "model={path: hf://org/base}")) == {"data": tokens, "model.path": base}
    assert fetched(*pretrain("data=[{path: org/tokens}, {path: data}]", "model.preset=tiny")) == {"data.path": tokens}
    assert fetched("preprocess", "input=org/chats", "output=out", "tokenizer.path=org/base") == {
        "input": stored(shell, f"data/org/chats@{COMMIT}"),
        "tokenizer.path": stored(shell, f"tokenizers/org/base@{COMMIT}"),
    }
    items = f"files/org/boolq@{COMMIT}/data/validation.jsonl"
    evaluate = ("evaluate", "model=org/base", "tasks=[boolq]", "task_files={boolq: org/boolq}")
    assert fetched(*evaluate) == {"model": base, "task_files.boolq": stored(shell, items)}
    rewards = "grpo={rewards: [{model: {of: org/base}}]}"
    assert fetched("align", "model.path=org/base", "data=org/chats", "method=grpo", "steps=3", rewards) == {
        "model.path": base,
        "data": stored(shell, f"data/org/chats@{COMMIT}"),
        "grpo.rewards.model.of": base,
    }
    assert fetched("serve", "model=org/base") == {"model": base}
    assert fetched("distill", "teacher=org/base", "student.path=org/base", "data=org/tokens", "steps=3") == {
        "teacher": base,
        "student.path": base,
        "data": tokens,
    }
    assert fetched("command", 'command=["true"]') == {}


def test_what_exists_on_disk_wins_and_hf_forces_the_hub(shell: Shell, hub: FakeHub) -> None:
    make_base(shell.home / "org/base")

    write_lines(shell.home / "chats.jsonl", chats(20))
    keys = ("data=chats.jsonl", "steps=2")
    assert json.loads(shell("fetch", "finetune", "model.path=org/base", *keys, "--json")) == []
    assert not [path for path in hub.requests if path.startswith("/api/")]
    (item,) = json.loads(shell("fetch", "finetune", "model.path=hf://org/base", *keys, "--json"))
    assert item["path"] == stored(shell, f"models/org/base@{COMMIT}")


def test_a_mistake_is_told_before_anything_is_fetched(shell: Shell, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ("run", "finetune", "steps=2")
    assert "model.path: org/bsae: not here, and the hub" in shell.mistake(*keys, "model.path=org/bsae", "data=org/chats")
    assert "data: " in shell.mistake(*keys, "model.path=org/base", "data=missing.jsonl")
    assert not any("/resolve/" in path for path in hub.requests)
    fall_silent(hub, monkeypatch)
    assert "tokenizer.path: org/other: not here, and the hub" in shell.mistake(
        "run", "preprocess", "input=source/chats.jsonl", "output=out", "tokenizer.path=org/other"
    )
    assert "cannot be reached (no answer within 1 s)" in shell.err
    assert "or make it with `ropewalk run preprocess output=out/tokens`" in shell.mistake("run", *pretrain("data=out/tokens"))
    assert not RunDir.all(shell.home / "runs")


def test_a_task_of_lm_eval_needs_a_hub_that_answers(shell: Shell, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    (shell.home / "model").mkdir()
    (shell.home / "model/config.json").write_text("{}")
    keys = ("run", "evaluate", "model=model", "tasks=[lambada_openai]", "--dry-run")
    assert "tasks" in shell(*keys)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    answer = shell.mistake(*keys)
    assert "tasks: lm-eval loads the data of lambada_openai from the hub" in answer
    assert "cannot be reached (HF_HUB_OFFLINE is set)" in answer


def test_the_job_file_of_the_documents_is_fetched(shell: Shell, hub: FakeHub) -> None:
    chat = hub.repositories["datasets/org/chats"]["data/train.jsonl"]
    hub.repositories = {
        "models/HuggingFaceTB/SmolLM2-135M": hub.repositories["models/org/base"],
        "datasets/HuggingFaceH4/ultrachat_200k": {f"data/{split}-0.parquet": chat for split in ("train_sft", "train_gen")},
    }
    (shell.home / "finetune.yaml").write_text(files("docs/guides/models-and-data.md")["finetune.yaml"])
    items = {item["key"]: item["path"] for item in json.loads(shell("fetch", "-c", "finetune.yaml", "--json"))}
    assert (Path(items["model.path"]) / "config.json").is_file()
    assert [path.name for path in Path(items["data"]).parent.iterdir()] == ["train_sft-0.parquet"]


def test_a_dry_run_fetches_nothing(shell: Shell, hub: FakeHub) -> None:
    shell("run", *pretrain("model.path=org/base", "--dry-run"))
    assert [path for path in hub.requests if "/resolve/" in path] == []


def test_trials_and_steps_get_what_was_fetched(shell: Shell, hub: FakeHub) -> None:
    sweep = {
        "job": "finetune",
        "base": {"model": {"path": "org/base"}, "data": "org/chats", "steps": 4},
        "space": {"optim.lr": {"choice": [1e-3, 1e-4]}},
        "metric": "validation/loss",
        "trials": 2,
    }
    (shell.home / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    run = RunDir(shell.home / "runs" / shell("submit", "sweep", "-c", "sweep.yaml", "--on", "good").strip())
    assert run.record["config"]["base"]["model"]["path"] == stored(shell, f"models/org/base@{COMMIT}")
    assert run.record["config"]["base"]["data"] == [stored(shell, f"data/org/chats@{COMMIT}")]
    pipeline = {
        "steps": {
            "tokens": {
                "job": "preprocess",
                "config": {"input": "org/chats", "output": "work/tokens", "tokenizer": {"path": "org/base"}},
            },
            "train": {"job": "pretrain", "config": {"data": "tokens", "model": {"path": "org/base"}, "steps": 2}},
        }
    }
    (shell.home / "pipeline.yaml").write_text(yaml.safe_dump(pipeline))
    items = json.loads(shell("fetch", "pipeline", "-c", "pipeline.yaml", "--json"))
    assert {item["key"] for item in items} == {
        *("steps.tokens.input", "steps.tokens.tokenizer.path", "steps.train.model.path"),
    }


def at_least(counts: Mapping[str, int], key: str, wanted: int) -> bool:
    return counts[key] >= wanted


FETCH = (sys.executable, "-m", "ropewalk.jobs.cli", "fetch", "finetune", "model.path=org/large", "data=chats.jsonl", "steps=1")


@pytest.mark.parametrize("kills", [1, pytest.param(50, marks=pytest.mark.soak("50 kills; make test makes one"))])
def test_a_killed_fetch_goes_on_where_it_was(shell: Shell, hub: FakeHub, kills: int) -> None:
    weights = os.urandom((kills + 2) * 4 * MIB)
    hub.repositories = {"models/org/large": {"config.json": b'{"model_type": "llama"}', "model.safetensors": weights}}
    hub.faults.bytes_per_second = 10e6  # a kill that is late on a busy machine must not find it complete
    write_lines(shell.home / "chats.jsonl", chats(5))
    file, environment = f"{COMMIT}/model.safetensors", {**os.environ, "ROPEWALK_RUNS": str(shell.home / "runs")}
    for _ in range(kills):
        process = subprocess.Popen(FETCH, env=environment, cwd=shell.home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(partial(at_least, hub.sent_bytes, file, hub.sent_bytes[file] + 3 * MIB), Patience.START)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert list((shell.home / "runs/.hub/blobs").glob("*.partial")), "it was complete before it was killed"
    subprocess.run(FETCH, env=environment, cwd=shell.home, check=True, capture_output=True)
    assert Path(stored(shell, f"models/org/large@{COMMIT}/model.safetensors")).read_bytes() == weights
    again = hub.sent_bytes[file] - len(weights)
    print(f"{kills} kills: {again / kills / MIB:.2f} MiB fetched again for each")
    assert again <= kills * 8 * MIB


@pytest.mark.soak(
    "two commands; test_a_model_and_conversations_of_the_hub_are_trained_without_a_network fetches,"
    " test_s3_holds_the_same_data_set_as_a_disk reads S3"
)
@pytest.mark.s3
def test_a_model_in_an_object_store_is_fetched(shell: Shell, s3_server: "S3Server", tmp_path: Path) -> None:
    import s3fs

    source, bucket = contents(make_base(tmp_path / "source/base")), s3_server.bucket()
    s3fs.S3FileSystem().put(str(tmp_path / "source/base"), f"{bucket}/models/", recursive=True)
    write_lines(shell.home / "chats.jsonl", chats(10))
    keys = ("finetune", f"model.path={bucket}/models/base", "data=chats.jsonl", "steps=1")
    (fetched,) = json.loads(shell("fetch", *keys, "--json"))
    assert fetched["name"] == f"{bucket}/models/base"
    present = contents(Path(fetched["path"]))
    assert present == {name: data for name, data in source.items() if name in present}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(present)
    s3_server.cut()
    try:
        assert "cannot be read" in shell.mistake("run", *keys)
    finally:
        s3_server.restore()

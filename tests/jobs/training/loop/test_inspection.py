"""A look into ranks that train: the same steps in all traces, memory by kind, and training that goes on."""

import gzip
import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import nn

from ropewalk.cluster.run.files import read_json, write_json
from ropewalk.cluster.run.inspections import InspectionRequest, rank_request_file
from ropewalk.jobs.cli.answers.schema import validate
from ropewalk.jobs.runs.inspect.traces import OUTSIDE, merge_traces
from ropewalk.jobs.training.loop.report.inspection import memory_by_kind
from ropewalk.jobs.training.loop.update.state import TrainState
from tests.fakes.token_files import write_dataset
from tests.jobs.launch import losses, make_run, pretrain_config, start


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "data", [5000], [600])
    (tmp_path / "data/tokenizer").mkdir()
    (tmp_path / "data/tokenizer/tokenizer.json").write_text("{}")  # a run that trains takes a copy
    return tmp_path / "data"


def test_ranks_are_profiled_at_the_same_steps_and_lose_none(tmp_path: Path, data: Path) -> None:
    run = make_run(tmp_path / "runs", pretrain_config(data, steps=40, batch={"global_batch": 2, "micro_batch": 1}))
    ranks = start(run, 2)
    ranks.until(lambda: bool(losses(run)))
    requests = [
        InspectionRequest(number=1, kind="profile", attempt=1, time=0.0, steps=2),
        InspectionRequest(number=2, kind="memory", attempt=1, time=0.0),
    ]
    for request in requests:
        write_json(rank_request_file(run.path / "stop-here"), asdict(request))
        folder = request.folder(run)
        ranks.until(lambda folder=folder: all((folder / f"rank-{rank}.json").exists() for rank in range(2)))  # type: ignore[misc]
    assert ranks.wait() == [0, 0]
    assert sorted(losses(run)) == list(range(1, 41)), "every step was taken"

    folder = requests[0].folder(run)
    answers = [read_json(folder / f"rank-{rank}.json") or {} for rank in range(2)]
    assert answers[0]["first_step"] == answers[1]["first_step"]
    merged = merge_traces({rank: folder / answer["trace"] for rank, answer in enumerate(answers)}, tmp_path / "trace.json.gz")
    first = answers[0]["first_step"]
    assert merged.steps == {0: [first, first + 1], 1: [first, first + 1]}
    rows = {row.name: row for row in merged.rows}
    assert {"aten::mm", OUTSIDE} <= rows.keys()
    assert sum(row.share for row in merged.rows if not row.device) == pytest.approx(1.0, abs=0.6), "threads of gloo add to it"
    events = json.loads(gzip.decompress((tmp_path / "trace.json.gz").read_bytes()))["traceEvents"]
    names = {event["args"]["name"].partition(":")[0] for event in events if event.get("name") == "process_name"}
    assert names == {"rank 0", "rank 1"}
    assert all(isinstance(event["pid"], int) for event in events if "pid" in event)

    answer = {"run": run.id, "attempt": 1, "trace": "trace.json.gz", "missing_ranks": [], **asdict(merged)}
    validate("profile", json.dumps(answer))
    memories = [read_json(requests[1].folder(run) / f"rank-{rank}.json") or {} for rank in range(2)]
    validate("memory", json.dumps({"run": run.id, "attempt": 1, "ranks": memories, "missing_ranks": []}))
    for memory in memories:
        kinds = memory["kinds"]
        assert sum(kinds.values()) == memory["total"]
        assert 0 < kinds["gradients"] <= kinds["parameters"]
        assert kinds["parameters"] < kinds["optimizer"] < 2.5 * kinds["parameters"], "two moments of each"


def test_memory_of_a_gpu_by_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's figures are made up: the kinds sum up to what is in use."""
    stats = {"allocated_bytes.all.current": 700, "reserved_bytes.all.current": 900, "allocated_bytes.all.peak": 800}
    monkeypatch.setattr("torch.cuda.memory_stats", lambda _: stats)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (4000, 5000))
    model = nn.Linear(2, 2)
    memory = memory_by_kind(TrainState(model, torch.optim.AdamW(model.parameters())), torch.device("cuda", 0))
    assert memory["kinds"] == {
        "parameters": 0,  # these are on the CPU
        "gradients": 0,
        "optimizer": 0,
        "other tensors": 700,
        "cached by the allocator": 200,
        "outside of torch": 100,
    }
    assert (memory["total"], sum(memory["kinds"].values()), memory["peak"]["allocated"]) == (1000, 1000, 800)

"""A model on two ranks: one mapped copy for both, or sharded, each rank calling it as often as it needs."""

import json
import os
from datetime import timedelta
from pathlib import Path

import torch
from torch.distributed import TCPStore
from transformers import AutoModelForCausalLM

from ropewalk.jobs.inference.scoring.open_on_ranks import RankModel, find_on_ranks, open_on_ranks
from ropewalk.sharding.fsdp import reshard_all
from ropewalk.sharding.group import Group, process_group
from tests.fork_server import SERVER
from tests.jobs.tiny import tiny_model

TOKENS = [[1, 2, 3], [4, 5, 6, 7], [8, 9]]


def logits_of(model: RankModel, tokens: list[int]) -> list[float]:
    with torch.no_grad():
        result: list[float] = model.opened.model(input_ids=torch.tensor([tokens])).logits[0, -1].tolist()
    return result


def answers(folder: Path, group: Group) -> dict[str, object]:
    def opened(shard: str) -> RankModel:
        return open_on_ranks(find_on_ranks(str(folder / "model"), folder, group), group, torch.float32, shard)  # type: ignore[arg-type]

    shared = opened("auto")
    maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if "model.safetensors" in line]
    whole = [logits_of(shared, tokens) for tokens in TOKENS]
    sharded = opened("always")
    mine = TOKENS if group.rank == 0 else TOKENS[:1]
    parts = [logits_of(sharded, tokens) for tokens in mine]
    sharded.settle()
    reshard_all(sharded.opened.model)
    rows = sum(len(parameter.to_local()) for parameter in sharded.opened.model.parameters())
    return {"maps": maps, "whole": whole, "sharded": parts, "rows": rows}


def rank_main(rank: int, port: int, folder: Path) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank))
    os.environ.update(OMP_NUM_THREADS="1", TORCHELASTIC_USE_AGENT_STORE="True", GLOO_SOCKET_IFNAME="lo", TMPDIR=str(folder))
    torch.set_num_threads(1)
    with process_group() as group:
        (folder / f"{rank}.json").write_text(json.dumps(answers(folder, group)))


def test_a_copy_is_mapped_or_divided(tmp_path: Path) -> None:
    tiny_model(tmp_path / "model")
    AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16).save_pretrained(tmp_path / "model")
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    ranks = [SERVER.Process(target=rank_main, args=(rank, store.port, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
        assert process.exitcode == 0
    first, second = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    files = {line.split()[5] for each in (first, second) for line in each["maps"]}
    assert len(files) == 1, "both ranks map one file"
    assert not list(tmp_path.glob("model-*")), "it is removed"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    with torch.no_grad():
        expected = [model(input_ids=torch.tensor([tokens])).logits[0, -1].tolist() for tokens in TOKENS]
    for result, calls in ((first, 3), (second, 1)):
        torch.testing.assert_close(torch.tensor(result["whole"]), torch.tensor(expected))
        torch.testing.assert_close(torch.tensor(result["sharded"]), torch.tensor(expected[:calls]))
    assert first["rows"] + second["rows"] == sum(len(parameter) for parameter in model.parameters())

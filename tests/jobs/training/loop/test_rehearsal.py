"""The rehearsal of spare processes, which leaves nothing behind in them."""

import gc
import json
from itertools import islice
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from ropewalk.jobs.training.loop.rehearsal import rehearse
from tests.fork_server import SERVER

PARTS = 4  # places where it can be abandoned


def rehearse_again_and_again(results: Path) -> None:
    """Rehearse to the end, up to each place where a rehearsal can be abandoned, and to the end again."""
    gc.freeze()
    torch.set_num_threads(1)
    process, left = psutil.Process(), []
    for parts in (None, *range(1, PARTS + 1), None):
        random_state, rehearsal = torch.get_rng_state(), rehearse()
        passed = len(list(islice(rehearsal, parts)))
        rehearsal.close()
        gc.collect()
        alive = sum(isinstance(each, DeviceMesh | torch.nn.Module) for each in gc.get_objects())
        alive += dist.is_initialized() + (not torch.equal(random_state, torch.get_rng_state()))
        left.append([passed, alive, process.num_fds(), process.num_threads()])
    results.write_text(json.dumps(left))


def test_a_rehearsal_leaves_nothing_behind_wherever_it_is_abandoned(tmp_path: Path) -> None:
    process = SERVER.Process(target=rehearse_again_and_again, args=(tmp_path / "left.json",))
    process.start()
    process.join()
    left = json.loads((tmp_path / "left.json").read_text())
    assert [passed for passed, *_ in left] == [PARTS, *range(1, PARTS + 1), PARTS]
    assert {tuple(each) for _, *each in left} == {(0, *left[0][2:])}

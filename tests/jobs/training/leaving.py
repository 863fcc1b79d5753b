"""A rank whose groups break, or make way for another group, again and again: what each leaves behind in its process."""

import gc
import json
import os
import threading
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.distributed.device_mesh import DeviceMesh

from ropewalk.cluster.engines.entry import run_entry
from ropewalk.cluster.errors import EXIT_REQUEUE
from ropewalk.cluster.process.ports import free_port
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.group_line import Rehearsal
from ropewalk.jobs.training.loop.trainer import Trainer
from tests.fork_server import SERVER
from tests.patience import Patience, until

GROUPS, STEPS = 4, 3
THREADS = {"writer", "prefetch", "ropewalk-checkpoint"}  # of a group
GROWTH_BYTES = 24 << 20


class Line:
    """The line of a rank that stays, without an agent."""

    stays = False

    def announce(self, *, stays: bool, rehearsal: Rehearsal | None) -> None:
        self.stays = stays

    def is_over(self, group: int) -> bool:
        return False


def check_leaving(run: RunDir, folder: Path) -> None:
    """Check that groups of one rank leave no model, file, thread and memory behind.

    The odd ones break in their fourth step, the even ones save, since another group is to form.
    """
    results = folder / "left.json"
    process = SERVER.Process(target=_leave_again_and_again, args=(run, results))
    process.start()
    process.join()
    left = json.loads(results.read_text())
    assert [each["alive"] for each in left] == [[0, 0, 0]] * GROUPS
    assert {each["files"] for each in left[1:]} == {left[1]["files"]}
    assert {each["threads"] for each in left[1:]} == {left[1]["threads"]}
    assert left[-1]["bytes"] - left[1]["bytes"] < GROWTH_BYTES
    assert [each["children"] for each in left] == [0] * GROUPS


def _leave_again_and_again(run: RunDir, results: Path) -> None:
    gc.freeze()
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    attempt, start_step, left = run.begin_attempt(), Trainer._start_step, []

    regroup_flag = results.with_name("regroup")

    def start_or_break(self: Trainer, batch: Any) -> None:
        if self.progress.step == STEPS * self.context.group + 1:
            if self.context.group % 2:
                raise RuntimeError("gloo: a peer is gone")
            regroup_flag.touch()
        start_step(self, batch)

    Trainer._start_step = start_or_break  # type: ignore[method-assign]
    for group in range(1, GROUPS + 1):
        os.environ["MASTER_PORT"] = str(free_port("127.0.0.1"))
        line: Any = Line()
        regroup_flag.unlink(missing_ok=True)
        context = JobContext(run=run, attempt=attempt, group=group, regroup_flag=regroup_flag, line=line)
        context.fence.claim()
        assert run_entry(context) == (None if group % 2 else EXIT_REQUEUE)
        assert context.stays
        gc.collect()
        until(lambda: not THREADS & {thread.name for thread in threading.enumerate()}, Patience.SIGNAL)
        process, objects = psutil.Process(), gc.get_objects()
        alive = [sum(isinstance(each, kind) for each in objects) for kind in (DeviceMesh, torch.nn.Module, Trainer)]
        left.append({"alive": alive, "files": process.num_fds(), "threads": process.num_threads()})
        left[-1] |= {"bytes": process.memory_info().rss, "children": len(process.children())}
    results.write_text(json.dumps(left))

"""Run a job of one rank in the process of the test: it has the imports that a new rank would repeat."""

import os
from typing import Any

import torch

from ropewalk.cluster.engines.entry import run_entry
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir


def run_here(run: RunDir) -> dict[str, Any]:
    """Run the next attempt to its end and return its results. Variables and threads are as before."""
    context = JobContext(run=run, attempt=run.begin_attempt(), stop_flag=run.path / "stop-here")
    context.fence.claim()
    environment, threads = dict(os.environ), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        code = run_entry(context)
    finally:
        torch.set_num_threads(threads)
        os.environ.clear()
        os.environ.update(environment)
    assert code == 0, run.read_errors(context.attempt)
    return run.results()

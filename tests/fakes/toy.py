"""Entries small enough to watch the machinery at work: a counter that all ranks agree on."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from ropewalk.cluster.errors import ConfigError, GateError, StopRequested
from ropewalk.cluster.run import heartbeat
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.files import append_line, read_json, write_json
from ropewalk.cluster.run.phase_clock import Phase


def variables(context: JobContext) -> dict[str, Any]:
    """Return the variables that the run requires, as a rank has them."""
    return {name: os.environ.get(name) for name in context.run.record["required_environment"]}


def count(context: JobContext) -> dict[str, Any]:
    """Count to `steps` on every rank together; each step is kept in the metrics; stop when asked."""
    import torch.distributed as dist

    if context.rank:
        time.sleep(context.run.record["config"].get("late", 0))
    dist.init_process_group("gloo")
    try:
        step = _count(context)
    except StopRequested:
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()
    return {"step": step, "world": context.world_size}


def count_in_pairs(context: JobContext) -> dict[str, Any]:
    """`count` on an even number of ranks: one more is spare."""
    from ropewalk.sharding.config import ParallelConfig
    from ropewalk.sharding.group import process_group

    context.heart.begin(patience_seconds=60)
    with process_group(ParallelConfig(replicate=2)) as group:
        return {"step": _count(context), "world": group.world_size}


def _count(context: JobContext) -> int:
    import torch
    import torch.distributed as dist

    config = context.run.record["config"]
    step = max((int(line["step"]) for line in context.run.read_metrics()), default=0)  # whole, or not there, after any kill
    while step < config["steps"]:
        flags = torch.tensor([float(context.stop_requested()), 1.0])
        dist.all_reduce(flags)
        step += 1
        if context.rank == 0:
            context.fence.check()
            append_line(
                context.run.metrics, {"step": step, "attempt": context.attempt, "time": time.time(), "world": int(flags[1])}
            )
            context.run.event("checkpoint", step=step)
        if flags[0] > 0:
            raise StopRequested(f"step {step}")
        time.sleep(config.get("pause", 0.05))
    return step


def beat(context: JobContext) -> dict[str, Any]:
    """`count` with heartbeats; `stuck` names the rank that stops sending them: {rank, step, how}."""
    import torch
    import torch.distributed as dist

    config, heart = context.run.record["config"], context.heart
    heartbeat.ASLEEP_SECONDS = config.get("asleep_seconds", heartbeat.ASLEEP_SECONDS)
    heart.begin(patience_seconds=60)
    dist.init_process_group("gloo")
    saved = context.run.path / "saved.json"
    step = int((read_json(saved) or {"step": 0})["step"])
    while step < config["steps"]:
        heart.beat(Phase.DATA, step)
        heart.beat(Phase.STEP, step)
        if config.get("stuck", {}).get("step") == step and not (context.run.path / "stuck.json").exists():
            _get_stuck(context, config["stuck"])
        dist.all_reduce(torch.ones(1))
        time.sleep(config.get("pause", 0.02))
        step += 1
        heart.beat(Phase.REPORT, step)
        if context.rank == 0:
            context.fence.check()
            write_json(saved, {"step": step})
            append_line(context.run.metrics, {"step": step, "attempt": context.attempt, "time": time.time()})
    heart.beat(Phase.LEAVING, step)
    dist.destroy_process_group()
    return {"step": step, "world": context.world_size}


def deaf(context: JobContext) -> dict[str, Any]:
    """The first group waits for ever, and no rank of it notices that another is gone: as in a collective of NCCL."""
    if context.group == 1:
        context.run.event("deaf", rank=context.rank)
        threading.Event().wait()
    return {"group": context.group}


def _get_stuck(context: JobContext, stuck: dict[str, Any]) -> None:
    if context.rank != stuck["rank"]:
        return
    write_json(context.run.path / "stuck.json", {"time": time.time()})
    seconds = stuck.get("seconds", 3600)
    deadline = time.monotonic() + seconds
    match stuck["how"]:
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "python":  # it computes, a tenth of the time: other tests need the core
            while time.monotonic() < deadline and (time.sleep(0.02) or sum(range(100_000))):  # one place, not two
                pass
        case "asleep":
            time.sleep(seconds)
        case "data":  # it says that it waits for its next batch
            context.heart.beat(Phase.DATA, stuck["step"])
            time.sleep(seconds)
        case "loader" | "busy loader":  # a batch comes from another process
            context.heart.beat(Phase.DATA, stuck["step"])
            program = (
                "import time; time.sleep({0})"
                if stuck["how"] == "loader"
                else "import time; e=time.time()+{0}\nwhile time.time()<e: time.sleep(0.02) or sum(range(100_000))"
            )
            subprocess.run([sys.executable, "-c", program.format(seconds)], check=True)


def fail(context: JobContext) -> dict[str, Any]:
    """A bug."""
    raise ZeroDivisionError(f"attempt {context.attempt}")


def misspell(context: JobContext) -> dict[str, Any]:
    """A mistake that every attempt meets."""
    return {"lr": context.run.record["config"]["lr"]}


def crash(context: JobContext) -> dict[str, Any]:
    """Native code that dies of `signal`, or else NCCL that says it lost a peer, in every group."""
    number = context.run.record["config"].get("signal")
    if number is None:
        raise RuntimeError("NCCL error in: NCCLUtils.cpp: unhandled system error")
    os.kill(os.getpid(), number)
    threading.Event().wait()
    return {}


def refuse(context: JobContext) -> dict[str, Any]:
    """A user's mistake that only shows at run time; one rank alone sees it."""
    if context.rank == 0:
        raise ConfigError("data: no such directory: nowhere; give one that exists")
    threading.Event().wait()  # as a rank does in a collective that nobody else joins; its agent must end it
    return {}


def gate(context: JobContext) -> dict[str, Any]:
    """All is done, and a figure misses what was asked of it."""
    raise GateError("the gate refuses it: right is 0.2, must be >= 0.5", {"scores": {"right": 0.2}})


def ray_sum(context: JobContext) -> dict[str, Any]:
    """Compute on the Ray cluster, count its nodes, and print the run's secrets in the driver and in a worker."""
    import ray

    names = context.run.record.get("secrets", [])

    def show() -> list[str]:
        values = [os.environ[name] for name in names]
        print("worker", *values, flush=True)
        return values

    ray.init(address=os.environ["RAY_ADDRESS"])
    remote = ray.remote(num_cpus=1)(lambda x: x * x)
    total = sum(ray.get([remote.remote(i) for i in range(4)]))
    nodes = len([n for n in ray.nodes() if n["Alive"]])
    niceness = ray.get(ray.remote(lambda: os.nice(0)).remote()) - os.nice(0)
    values = ray.get(ray.remote(num_cpus=1)(show).remote())
    print("driver", *values, flush=True)
    ray.shutdown()
    return {"total": total, "nodes": nodes, "niceness": niceness, "values": values}


def place(context: JobContext) -> dict[str, Any]:
    """Working directory and user of the process engine."""
    return {"rank": context.rank, "world": context.world_size, "attempt": context.attempt}


def tick(context: JobContext) -> dict[str, Any]:
    """`count` without torch, for the process engine."""
    config, saved = context.run.record["config"], context.run.path / "saved.json"
    step = int((read_json(saved) or {"step": 0})["step"])
    while step < config["steps"]:
        stop = context.stop_requested()
        step += 1
        context.fence.check()
        write_json(saved, {"step": step})
        append_line(context.run.metrics, {"step": step, "attempt": context.attempt, "time": time.time(), "world": 1})
        if stop:
            raise StopRequested(f"step {step}")
        time.sleep(config.get("pause", 0.05))
    return {"step": step}


def devices(context: JobContext) -> dict[str, Any]:
    """GPUs in a rank's environment, and the device that it would compute on."""
    from ropewalk.sharding.group import rank_device

    gpus = os.environ.get("ROPEWALK_NODE_GPUS")
    device = str(rank_device()) if gpus == "0" else ""
    asks_nvml = os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK")
    observed = {"nvml": asks_nvml, "given": gpus, "visible": os.environ.get("CUDA_VISIBLE_DEVICES"), "device": device}
    observed["order"] = os.environ.get("CUDA_DEVICE_ORDER")
    write_json(context.run.path / f"devices-{context.rank}.json", observed)
    return {}


def chat(context: JobContext) -> dict[str, Any]:
    """Print lines in pieces, log, and leave the last line without an end."""
    for number in range(100):
        sys.stdout.write(f"piece {number} ")
        sys.stderr.write("")
        sys.stdout.write(f"of {context.rank}\n")
    logging.getLogger(__name__).info("all said")
    sys.stdout.write(f"the last of {context.rank}")
    return {}

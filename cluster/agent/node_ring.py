"""The check of an attempt's nodes at its first formation: each checks itself, then they send data around a ring.

It runs beside the agent in a process of its own, since GPUs and networks that are broken let their callers hang.
"""

import json
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ropewalk.cluster.agent.node_checks import GPUS, Finding, judge_clock, local_checks
from ropewalk.cluster.config import NodeRange
from ropewalk.cluster.fresh_reads import read_json_afresh
from ropewalk.cluster.process.ports import free_port
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.exclusive import create_whole
from ropewalk.cluster.run.names import NODES
from ropewalk.cluster.run.node_ledger import machine_name

CHECK_SECONDS = 20.0  # for all of it
MEET_SECONDS = 8.0  # for the other nodes to join
POLL_SECONDS = 0.1
RING_MIB = 16
SLOW_SHARE = 1 / 3  # of the median rate
LEAST_COMPARED = 3  # of fewer nodes nobody can tell which one differs


@dataclass(frozen=True, kw_only=True)
class RingNode:
    """A node that is checked."""

    folder: Path  # of the attempt's nodes, which all of them see
    runs: Path
    node: int
    least: int  # number of nodes that must join
    nodes: int  # number of nodes that may join
    address: str
    gpus: int


def check_nodes(run: RunDir, attempt: int, *, node: int, nodes: NodeRange, address: str, gpus: int) -> None:
    """Check this node unless the attempt's first group has formed; record what was found, in at most 20 s."""
    folder = run.attempt_dir(attempt) / NODES
    done = folder / "checked"
    if done.exists():  # a node that returns
        return
    began = time.monotonic()
    size = {"least": nodes.least, "nodes": nodes.most}
    checked = RingNode(folder=folder, runs=run.path.parent, node=node, **size, address=address, gpus=gpus)
    findings = run_apart(_check, checked, CHECK_SECONDS)
    done.touch()
    fields = {"node": node, "host": machine_name(), "attempt": attempt}
    values = {finding.check: finding.value for finding in findings}
    run.event("node_checked", **fields, seconds=round(time.monotonic() - began, 1), values=values)
    for finding in findings:
        if finding.remedy:
            run.event("node_finding", **fields, **finding._asdict())


def run_apart(check: Callable[[Connection, Any], None], argument: object, seconds: float) -> list[Finding]:
    """Run checks in a process, and return what they found; a check that hangs is a finding too.

    The process sends the name of each check, then its finding, and at last an empty name.
    """
    context = multiprocessing.get_context("forkserver")
    mine, its = context.Pipe(duplex=False)
    process = context.Process(target=check, args=(its, argument), daemon=True)
    process.start()
    its.close()
    deadline, findings, current = time.monotonic() + seconds, list[Finding](), "start"
    with suppress(EOFError):
        while current and mine.poll(max(0.0, deadline - time.monotonic())):
            message = mine.recv()
            if isinstance(message, str):
                current = message
            else:
                findings.append(message)
    process.kill()
    process.join()
    if current:
        remedy = "see the node's log, and its GPUs and network"
        findings.append(Finding(current, f"no answer within {seconds:.0f} s", remedy, machine=current == GPUS))
    return findings


def _check(results: Connection, checked: RingNode) -> None:
    for name, check in local_checks(checked.runs, checked.address, checked.gpus).items():
        results.send(name)
        try:
            results.send(check())
        except (OSError, RuntimeError) as error:
            results.send(Finding(name, str(error).splitlines()[0], "see the log of this node"))
    if checked.nodes > 1:
        results.send("ring")
        for finding in ring(checked):
            results.send(finding)
    results.send("")


def ring(checked: RingNode) -> Iterator[Finding]:
    """Meet the other nodes, compare clocks, and send data to the next one."""
    try:
        yield from _meet(checked)
    except (OSError, RuntimeError) as error:
        yield Finding(
            "ring", str(error).splitlines()[0], "let firewalls pass TCP between the nodes, and see the other nodes' logs"
        )


def _meet(checked: RingNode) -> Iterator[Finding]:
    import torch.distributed as dist  # noqa: PLC0415 - slow to import

    meeting_file, began = checked.folder / "ring.json", time.monotonic()
    limit = timedelta(seconds=MEET_SECONDS)
    # each node offers a store, and the first one's is taken: in an elastic run any node may be missing, node 0 too
    port = free_port(checked.address)
    store = dist.TCPStore(checked.address, port, None, True, limit, wait_for_workers=False)
    offer = {"node": checked.node, "address": checked.address, "port": port}
    first = create_whole(meeting_file, json.dumps(offer))
    if not first:
        while not (meeting := read_json_afresh(meeting_file)):
            if time.monotonic() - began > MEET_SECONDS:
                value = f"a file of another node was not seen within {MEET_SECONDS:.0f} s"
                yield Finding("visibility", value, "let all nodes see the same directory of the runs")
                return
            time.sleep(POLL_SECONDS)
        yield Finding("visibility", f"a file of node {meeting['node']} was seen after {time.monotonic() - began:.1f} s")
        store = dist.TCPStore(meeting["address"], meeting["port"], None, False, limit)
    store.set(f"here/{checked.node}", "1")
    members = _members(checked, store, decides=first)
    if first and len(members) < checked.least:
        missing = ", ".join(str(node) for node in range(checked.nodes) if node not in members)
        remedy = "see the log of that node; firewalls must pass TCP to this one, and both must see the same directory of the runs"
        yield Finding("ring", f"node {missing} did not join", remedy)
    if len(members) > 1:
        yield from _send_around(checked, members, dist.PrefixStore("ring", store))


def _members(checked: RingNode, store: Any, *, decides: bool) -> list[int]:
    """Return the nodes that joined in time, in order; the node that has the store decides."""
    if decides:
        deadline, present = time.monotonic() + MEET_SECONDS / 2, [checked.node]
        while len(present) < checked.nodes and time.monotonic() < deadline:
            present = [node for node in range(checked.nodes) if store.check([f"here/{node}"])]
            time.sleep(POLL_SECONDS)
        store.set("members", json.dumps(present))
    members: list[int] = json.loads(store.get("members"))
    return members


def _send_around(checked: RingNode, members: list[int], store: Any) -> Iterator[Finding]:
    import torch  # noqa: PLC0415 - slow to import
    import torch.distributed as dist  # noqa: PLC0415 - as above

    if socket.gethostbyname(checked.address).startswith("127."):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # virtual nodes
    backend, device = ("nccl", "cuda:0") if checked.gpus else ("gloo", "cpu")
    rank, size = members.index(checked.node), len(members)
    limit = timedelta(seconds=MEET_SECONDS)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    sent = torch.full((RING_MIB << 18,), float(rank), device=device)
    received = torch.empty_like(sent)
    dist.barrier()
    now, began = time.time(), time.perf_counter()
    operations = [dist.P2POp(dist.isend, sent, (rank + 1) % size), dist.P2POp(dist.irecv, received, (rank - 1) % size)]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    right = bool((received == (rank - 1) % size).all())
    mine = torch.tensor([now, RING_MIB / (time.perf_counter() - began)], dtype=torch.float64, device=device)
    every = [torch.empty_like(mine) for _ in members]
    dist.all_gather(every, mine)
    yield from judge_ring(backend, members, rank, [(float(time_), float(rate)) for time_, rate in every], right=right)


def judge_ring(
    backend: str, members: list[int], rank: int, every: list[tuple[float, float]], *, right: bool
) -> Iterator[Finding]:
    """Compare a node with all: the time of each after a barrier, and MiB/s from the node before it in the ring."""
    times, rates = (sorted(values) for values in zip(*every, strict=True))
    now, rate = every[rank]
    median = rates[len(rates) // 2]
    value = f"{rate:.0f} MiB/s from node {members[rank - 1]} over {backend}"
    remedy = "" if right else "data arrived changed: see the errors of its network interfaces"
    if len(members) >= LEAST_COMPARED and rate < SLOW_SHARE * median:
        remedy = remedy or f"the median is {median:.0f} MiB/s: see the interfaces, cables and switch of both"
    yield Finding("ring", value, remedy)
    clock = judge_clock(now - times[len(times) // 2], "the other nodes' clocks")
    yield clock._replace(machine=clock.machine and len(members) >= LEAST_COMPARED)

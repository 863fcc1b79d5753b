"""Machines that failed repeatedly by themselves are avoided; a bug, an outage or one bad day excludes nobody."""

import json
import random
from pathlib import Path

import pytest

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.node_ledger import (
    DAY_SECONDS,
    EXPIRY_SECONDS,
    GPU_FAILURE,
    Cause,
    Failure,
    avoided,
    bad_nodes,
    read_failures,
    record_failure,
)

NOW = 1_000 * DAY_SECONDS


def failures(*lines: tuple[float, str, str, int]) -> list[Failure]:
    return [Failure(NOW - days * DAY_SECONDS, node, "down", run, attempt) for days, node, run, attempt in lines]


def names(lines: list[Failure]) -> list[str]:
    return [bad.node for bad in bad_nodes(lines, NOW)]


def test_two_runs_or_three_failures() -> None:
    assert names(failures((1, "n1", "a", 1))) == []
    assert names(failures((1, "n1", "a", 1), (2, "n1", "b", 1))) == ["n1"]
    assert names(failures((1, "n1", "a", 1), (2, "n1", "a", 2))) == []
    assert names(failures((1, "n1", "a", 1), (2, "n1", "a", 2), (3, "n1", "a", 3))) == ["n1"]
    assert names(failures((1, "n1", "a", 1), (1, "n1", "a", 1), (1, "n1", "a", 1))) == [], "an attempt loses a machine once"


def test_corruption_suffices_alone() -> None:
    """A run reports it at the second finding."""
    assert names([failures((1, "n1", "a", 1))[0]._replace(cause=Cause.CORRUPTION.value)]) == ["n1"]


def test_failures_expire() -> None:
    days = EXPIRY_SECONDS / DAY_SECONDS
    assert names(failures((days - 0.1, "n1", "a", 1), (1, "n1", "b", 1))) == ["n1"]
    assert names(failures((days + 0.1, "n1", "a", 1), (1, "n1", "b", 1))) == []


def test_a_common_cause_excludes_nobody() -> None:
    outage = failures(*((1 + number / 1000, f"n{number}", f"run-{number}", 1) for number in range(5)))
    assert names([*outage, *(each._replace(run="again", time=each.time + 60) for each in outage)]) == []
    spoiler = failures(*((number, f"n{number}", "a", number) for number in range(1, 5)))
    assert names([*spoiler, *failures((5, "n1", "b", 1))]) == [], "a run that loses machine after machine"


def test_at_most_a_tenth_of_a_partition() -> None:
    lines = failures(*((1 + number, f"n{number}", run, 1) for number in range(4) for run in ("a", f"b{number}")))
    lines = [each._replace(run=f"{each.run}-{each.node}") for each in lines] + failures((0.5, "n3", "c", 1))
    bad = bad_nodes(lines, NOW)
    assert [each.node for each in bad] == ["n3", "n0", "n1", "n2"]
    assert avoided(bad, [f"n{number}" for number in range(9)]) == []
    assert avoided(bad, [f"n{number}" for number in range(20)]) == ["n3", "n0"]
    assert avoided(bad, [f"m{number}" for number in range(100)]) == []


def test_no_false_exclusion_in_ten_thousand_failures() -> None:
    """Outages of racks, runs that bring down what they run on, and machines that fail once; among them ten broken ones."""
    draw, lines = random.Random(1), list[Failure]()
    nodes = [f"n{number}" for number in range(5000)]
    broken = {*draw.sample(nodes, 10)}
    single = [node for node in nodes if node not in broken]
    draw.shuffle(single)
    day = 0.0
    while len(lines) < 10_000:
        day += 0.5
        when = day * DAY_SECONDS
        kind = draw.randrange(3)
        if kind == 0:  # a rack without power: its 40 machines, under as many runs
            first = draw.randrange(0, 4960)
            lines += [
                Failure(when + draw.random() * 600, node, "down", f"r{day}-{node}", 1) for node in nodes[first : first + 40]
            ]
        elif kind == 1:  # a run that exhausts its machines, one after the other
            lines += [
                Failure(when + hour * 1800, node, "down", f"spoils-{day}", hour)
                for hour, node in enumerate(draw.sample(nodes, 8))
            ]
        else:
            lines.append(Failure(when, single.pop(), "gpu", f"once-{day}", 1))
        if draw.random() < 0.2:
            lines.append(Failure(when + 40_000, draw.choice(sorted(broken)), "gpu", f"broken-{day}", 1))
    excluded: set[str] = set()
    for week in range(1, int(day / 3)):
        now = week * 3 * DAY_SECONDS
        excluded |= {bad.node for bad in bad_nodes([each for each in lines if now - EXPIRY_SECONDS < each.time <= now], now)}
    assert excluded - broken == set()
    assert len(excluded) >= 5


def test_a_file_that_others_may_write_does_not_count(tmp_path: Path) -> None:
    run = RunDir.create("test", {"job": "command", "config": {}, "cluster": "big"}, tmp_path)
    record_failure(run, 1, "n1", Cause.DOWN)
    (file,) = (tmp_path / ".nodes").iterdir()
    assert json.loads(file.read_text())["run"] == run.id
    assert [each.node for each in read_failures(tmp_path, "big")] == ["n1"]
    assert read_failures(tmp_path, "other") == []
    file.chmod(0o666)
    assert read_failures(tmp_path, "big") == []


@pytest.mark.parametrize(
    ("message", "of_machine"),
    [
        ("CUDA error: uncorrectable ECC error encountered", True),
        ("NVRM: Xid (PCI:0000:17:00): 79, GPU has fallen off the bus.", True),
        ("NVRM: Xid (PCI:0000:17:00): 31, MMU fault", False),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", False),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_errors_of_gpu_hardware(message: str, *, of_machine: bool) -> None:
    assert bool(GPU_FAILURE.search(message)) is of_machine

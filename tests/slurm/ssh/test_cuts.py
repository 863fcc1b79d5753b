"""Connections that break: at most one job, and exactly one when the command is given again; and how often the sides wait."""

import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ropewalk.cluster.run.directory import RunDir
from ropewalk.slurm.lab.cluster import Lab
from tests.patience import until
from tests.slurm.conftest import end_jobs
from tests.slurm.ssh.login_node import Laptop, LoginNode, Relay
from tests.slurm.ssh.lossy_link import THERE, lossy_link

QUIET_SECONDS = 1.0
DELAY_SECONDS = 0.04  # each way
SUBMIT = ("submit", "command", "resources.nodes=1", "--on", "big")
PROGRAM = ("--", "python3", "train.py")


@pytest.fixture
def relay(node: LoginNode) -> Iterator[Relay]:
    relay = Relay(node.port, DELAY_SECONDS)
    node.write_config(relay.port)
    yield relay
    node.write_config(node.port)
    relay.close()


@pytest.fixture
def laptop(relay: Relay, node: LoginNode, tmp_path: Path) -> Iterator[Laptop]:
    """A laptop behind the relay, whose jobs are held in the queue."""
    laptop = Laptop(tmp_path / "laptop", node, sbatch={"hold": True})
    (laptop.project / "train.py").write_text("print('hello')\n")
    (laptop.project / "noise.bin").write_bytes(random.Random(0).randbytes(100_000))
    yield laptop
    end_jobs(*(f"ropewalk-{run.id}" for run in RunDir.all(node.runs)))


def submit(laptop: Laptop, number: int, code: int | None = 0) -> str:
    return laptop(*SUBMIT, f"seed={number}", *PROGRAM, code=code)


def change(laptop: Laptop, drawn: random.Random) -> None:
    (laptop.project / "noise.bin").write_bytes(drawn.randbytes(100_000))


def jobs() -> list[str]:
    listing = subprocess.run(["squeue", "--noheader", "--format=%k"], capture_output=True, text=True, check=True)
    return listing.stdout.split()


def check_cuts(laptop: Laptop, relay: Relay, cuts: int, seed: int) -> None:
    """Cut that many submissions, each at another byte of what a whole one takes, and give each again.

    Every second brings the program too; the others a changed file.
    """
    drawn, runs, with_program = random.Random(seed), laptop.node.runs, 0
    if cuts > 1 or not (runs / ".code").exists():
        shutil.rmtree(runs / ".code", ignore_errors=True)
        submit(laptop, 0)
        with_program = relay.bytes
        change(laptop, drawn)
    submit(laptop, 0)
    with_code = relay.bytes
    assert with_code < with_program or cuts == 1
    num_cut = 0
    for number in range(1, cuts + 1):
        change(laptop, drawn)
        if not number % 2:
            shutil.rmtree(runs / ".code")
        before = {run.id for run in RunDir.all(runs)}
        relay.cut_after = drawn.randrange(3000, with_code if number % 2 else with_program)
        submit(laptop, number, code=None)
        was_cut, error = laptop.code != 0, laptop.err
        relay.cut_after = None
        num_cut += was_cut
        if was_cut:
            assert "login.big" in error
            run = submit(laptop, number).split()[-1]
        else:
            run = laptop.out.split()[-1]
        assert {each.id for each in RunDir.all(runs)} - before == {run}
        submitted = RunDir(runs / run)
        assert submitted.attempts() == [1]
        assert submitted.last_outcome() is None
        assert jobs().count(f"ropewalk:{run}:1") == 1
    assert num_cut >= cuts / 2


def test_a_submission_that_is_cut_makes_one_job(slurm_lab: Lab, laptop: Laptop, relay: Relay) -> None:
    check_cuts(laptop, relay, 1, 1)


@pytest.mark.timeout(3600)  # some ten seconds each on quiet cores
@pytest.mark.soak("100 submissions; the one above cuts 1, which brings a changed file")
def test_a_hundred_submissions_that_are_cut_on_a_link_that_loses_packets(slurm_lab: Lab, laptop: Laptop, node: LoginNode) -> None:
    """80 ms there and back, and one packet in a hundred lost, to a client in a network namespace of its own."""
    with lossy_link(DELAY_SECONDS, loss=0.01) as (link, start_there):
        relay = Relay(node.port, address=THERE)
        node.write_config(relay.port, address=THERE)
        laptop.command = (*start_there, *laptop.command)
        check_cuts(laptop, relay, 100, 2)
        relay.close()
    assert 0.005 * link.num_packets < link.num_lost < 0.02 * link.num_packets


@pytest.mark.soak("a figure; the test above cuts a submission")
def test_a_second_command_takes_three_round_trips(laptop: Laptop, relay: Relay, node: LoginNode) -> None:
    node.write_config(relay.port, shared=True)
    submit(laptop, 0)
    for command in (["ps", "--all", "--on", "big"], [*SUBMIT, *PROGRAM]):
        until(lambda: time.monotonic() - relay.used_at > QUIET_SECONDS)  # the session before is closed
        before = relay.turns
        laptop(*command)
        assert relay.turns - before <= 3 + 1, command  # nobody waits for the last one, which closes the session

"""Who is a member of a run: whoever is connected and is heard of."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from k8s.pod import Pod
from k8s.wire import BEAT, pack
from tests.cluster.conftest import ROOT
from tests.patience import Patience, until

BEAT_SECONDS = 0.1
LOST_SECONDS = 2.0

CONDUCTOR = f"""
import socket, sys, time
from k8s import members

members.BEAT_SECONDS, members.LOST_SECONDS = {BEAT_SECONDS}, {LOST_SECONDS}
listener = socket.create_server(("127.0.0.1", 0))
known = members.Members(listener, lambda pod, caller: "")
print(listener.getsockname()[1], flush=True)
while True:
    for member in known.departed():
        print("silent" if member.silent else "gone", flush=True)
    time.sleep(0.01)
"""


class Conductor:
    """A process with nothing but members, and the words that it has said."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen([sys.executable, "-c", CONDUCTOR], stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.said: list[str] = []
        self.reader = threading.Thread(target=lambda: self.said.extend(map(str.strip, self.process.stdout or [])))
        self.reader.start()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Caller:
    """A pod that says hello and beats, until it is told to be silent."""

    def __init__(self, port: int) -> None:
        self.connection = socket.create_connection(("127.0.0.1", port))
        self.connection.sendall(pack({"say": "hello", "pod": vars(Pod(name="a", uid="1", index=0, address="127.0.0.1"))}))
        self.silent = threading.Event()
        self.heart = threading.Thread(target=self._beat)
        self.heart.start()

    def _beat(self) -> None:
        while not self.silent.wait(BEAT_SECONDS):
            with suppress(OSError):
                self.connection.sendall(pack(BEAT))

    def close(self) -> None:
        self.silent.set()
        self.heart.join()
        self.connection.close()


@pytest.fixture
def conductor() -> Iterator[Conductor]:
    one = Conductor()
    yield one
    one.close()


@pytest.fixture
def caller(conductor: Conductor) -> Iterator[Caller]:
    one = Caller(conductor.port)
    assert one.connection.recv(1), "it is let in, and hears a beat"
    yield one
    one.close()


def test_a_pod_that_falls_silent_is_lost(conductor: Conductor, caller: Caller) -> None:
    caller.silent.set()
    began = time.monotonic()
    until(lambda: conductor.said == ["silent"], Patience.SIGNAL)
    assert time.monotonic() - began >= LOST_SECONDS - 2 * BEAT_SECONDS


def test_a_pod_that_closes_the_connection_is_gone(conductor: Conductor, caller: Caller) -> None:
    caller.close()
    until(lambda: conductor.said == ["gone"], Patience.SIGNAL)


def test_a_conductor_that_stood_still_does_not_take_its_pods_for_silent(conductor: Conductor, caller: Caller) -> None:
    """It is not told what was said meanwhile before it looks at the clock."""
    for _ in range(2):
        conductor.process.send_signal(signal.SIGSTOP)
        time.sleep(1.5 * LOST_SECONDS)
        conductor.process.send_signal(signal.SIGCONT)
        time.sleep(0.5)
    assert conductor.said == []

"""A slow link that loses packets: two TUN devices, one in a network namespace of the client's own, and a relay between them."""

import fcntl
import os
import random
import select
import shutil
import struct
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

HERE, THERE = "10.99.0.1", "10.99.0.2"  # the client's address, and this namespace's
NAMESPACE = "ropewalk-client"
MOST_PACKET_BYTES = 1 << 16
SET_DEVICE, TUN, NO_HEADER = 0x400454CA, 0x0001, 0x1000  # of linux/if_tun.h


def need_tun() -> None:
    """Skip, with the remedy, where no TUN device can be made."""
    if os.geteuid() or not os.access("/dev/net/tun", os.W_OK) or shutil.which("ip") is None:
        pytest.skip("needs root, /dev/net/tun (modprobe tun) and ip (apt-get install iproute2)")


class LossyLink:
    """The relay: delays each packet, and loses a share of them."""

    def __init__(self, delay_seconds: float, loss: float, seed: int = 0) -> None:
        """`delay_seconds`: of each way. `loss`: share of the packets, drawn at random."""
        self.num_packets = self.num_lost = 0
        self._delay_seconds, self._loss, self._drawn = delay_seconds, loss, random.Random(seed)
        self._devices = [_device(f"rope{end}") for end in (0, 1)]
        self._ends, self._end = os.pipe()
        _ip("link", "set", "rope0", "netns", NAMESPACE)
        inside = ("-n", NAMESPACE)
        for where, device, address, peer in ((inside, "rope0", HERE, THERE), ((), "rope1", THERE, HERE)):
            _ip(*where, "address", "add", address, "peer", peer, "dev", device)
            _ip(*where, "link", "set", device, "up")
        _ip(*inside, "link", "set", "lo", "up")
        self._thread = threading.Thread(target=self._relay, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Remove the devices."""
        os.close(self._end)
        self._thread.join()
        for descriptor in (*self._devices, self._ends):
            os.close(descriptor)

    def _relay(self) -> None:
        here, there = self._devices
        waiting = deque[tuple[float, int, bytes]]()  # due, device, packet
        while True:
            patience = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
            ready, _, _ = select.select([here, there, self._ends], [], [], patience)
            if self._ends in ready:
                return
            now = time.monotonic()
            while waiting and waiting[0][0] <= now:
                _, device, packet = waiting.popleft()
                os.write(device, packet)
            for device in ready:
                packet = os.read(device, MOST_PACKET_BYTES)
                self.num_packets += 1
                if self._drawn.random() < self._loss:
                    self.num_lost += 1
                else:
                    waiting.append((now + self._delay_seconds, there if device == here else here, packet))


@contextmanager
def lossy_link(delay_seconds: float, loss: float) -> Iterator[tuple[LossyLink, Sequence[str]]]:
    """Make a link during the block. Yields it, and the words that start a program at its client's end."""
    need_tun()
    _ip("netns", "add", NAMESPACE)
    try:
        link = LossyLink(delay_seconds, loss)
        try:
            yield link, ("ip", "netns", "exec", NAMESPACE)
        finally:
            link.close()
    finally:
        _ip("netns", "delete", NAMESPACE)


def _device(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(descriptor, SET_DEVICE, struct.pack("16sH22x", name.encode(), TUN | NO_HEADER))
    return descriptor


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)

"""The input of a program that a laptop runs in a pod.

Kubernetes waits for ever for a program that ends before it has read all its input (kubectl hangs then): so the program is sent
nothing before it writes that it reads, and it reads to the end of the input even if it fails.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

READY = b"\n"  # what the program writes first: one byte, which cannot come in halves
REST_BYTES = 1 << 20


@contextmanager
def fed() -> Iterator[IO[bytes]]:
    """In the pod: yield the program's input, and read what is left of it at the end."""
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    try:
        yield sys.stdin.buffer
    finally:
        while sys.stdin.buffer.read(REST_BYTES):
            pass

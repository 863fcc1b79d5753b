"""Standard input of a program that another machine runs in a pod.

Kubernetes hangs, as does kubectl, if such a program ends before it has read all its input. Therefore the program signals when it
starts to read, nothing is sent before that, and it reads its input to the end even if it fails.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

READY = b"\n"  # the program's first output; a single byte cannot be split
REST_BYTES = 1 << 20


@contextmanager
def ready_stdin() -> Iterator[IO[bytes]]:
    """Signal readiness and yield the program's input; read the rest of it at the end. Used in the pod."""
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    try:
        yield sys.stdin.buffer
    finally:
        while sys.stdin.buffer.read(REST_BYTES):
            pass

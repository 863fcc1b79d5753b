"""A rank that trains and its rehearsal, in a module of their own, which only processes of ranks import."""

import time
from collections.abc import Generator
from pathlib import Path

from ropewalk.cluster.run.context import JobContext
from tests.patience import HANG_SECONDS


def rehearse_for_ever() -> Generator[None, None, None]:
    """Begin, and never end by itself."""
    Path("began").touch()
    try:
        while True:
            time.sleep(0.01)
            yield
    finally:
        Path("ended").touch()


def train(context: JobContext) -> None:
    """Be a rank that trains, until it is killed; a rank of a later group ends at once."""
    assert context.line is not None
    context.line.announce(stays=False, rehearsal=rehearse_for_ever)
    if context.group == 1:
        time.sleep(HANG_SECONDS)

"""The toy counter, which also tells whether it runs in an image."""

from pathlib import Path
from typing import Any

from ropewalk.cluster.run.context import JobContext
from tests.fakes import toy

MARK = Path("/etc/ropewalk-image")  # only the image has it


def tick(context: JobContext) -> dict[str, Any]:
    """Count as `toy.tick` does."""
    context.run.event("placed", rank=context.rank, attempt=context.attempt, image=MARK.exists(), cwd=str(Path.cwd()))
    return toy.tick(context)

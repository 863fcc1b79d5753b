"""A gateway that records the exchanges on standard input, prints which ones it has handed over, and waits to be killed.

Usage: python -m tests.jobs.serving.feedback.gateway FOLDER
"""

import asyncio
import json
import sys
from pathlib import Path

from ropewalk.jobs.serving.feedback import capture as module
from ropewalk.jobs.serving.feedback.capture import Capture, CaptureConfig, Exchange


async def main() -> None:
    """Hand over as fast as the writer reads, and always wait for it."""
    module.SOCKET_BYTES, module.HAND_OVER_SECONDS = 1, 1000.0
    capture = Capture(Path(sys.argv[1]), CaptureConfig(retention_days=1e5))
    await capture.start()
    assert capture._process is not None
    print("writer", capture._process.pid, flush=True)
    for line in sys.stdin:
        fields = json.loads(line)
        raw = {name: fields[name].encode() for name in ("request", "answer", "conversation")}
        capture.record(Exchange(**{**fields, **raw}))
        await capture.handed_over()
        print(fields["id"], flush=True)
        await asyncio.sleep(0)
    while capture.waiting:
        await asyncio.sleep(0.01)
    print("all", flush=True)
    await asyncio.sleep(1000)


if __name__ == "__main__":
    asyncio.run(main())

"""W&B's own offline files, read by W&B's own reader."""

import json
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ropewalk.cluster.run.directory import RunDir


def records(run: RunDir, kind: str) -> list[dict[str, Any]]:
    """The records of a kind, oldest file first: what `wandb leet inspect` asks of wandb-core, without its interpreter."""
    package = find_spec("wandb")
    assert package is not None
    assert package.origin is not None
    results = []
    for path in sorted(run.wandb.glob("offline-run-*/*.wandb")):
        core = [str(Path(package.origin).parent / "bin/wandb-core"), "leet", "inspect", "--no-observability", "--json"]
        done = subprocess.run([*core, "--run-file", str(path), str(run.wandb)], capture_output=True, text=True, check=False)
        results += [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [record for record in results if record.get("type") == kind]

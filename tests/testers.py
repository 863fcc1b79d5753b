"""Programs of others that test an HTTP interface, in an environment of their own that is made the first time."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("schemathesis==4.32.5", "llm-comply==0.5.0")


def conformance_tools() -> Path:
    """Return the folder with `schemathesis` and `llm-comply`."""
    folder = ROOT / "build/conformance"
    if not (folder / "bin/llm-comply").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(folder / "bin/pip"), "install", "--quiet", *PACKAGES], check=True)
    return folder / "bin"

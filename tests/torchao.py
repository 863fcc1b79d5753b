"""torchao, which lies beside the packages of the tests' environment: with it every import of transformers takes 0.7 s more."""

import sys
from pathlib import Path

import pytest

FOLDER = Path(sys.prefix) / "float8"  # made by make
needs_torchao = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"torchao is not in {FOLDER}; make installs it")


def allow_torchao() -> None:
    """Let this process import torchao; call it in processes that end with their test."""
    sys.path.append(str(FOLDER))

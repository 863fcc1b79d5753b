"""The program as users install it: a wheel of the checkout, in an environment that does not see the checkout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files that git knows, links as links, as in a clone."""
    folder = tmp_path_factory.mktemp("source")
    names = subprocess.run(["git", "ls-files", "-z", "--cached"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in names.split("\0"):
        path = ROOT / name
        if name and os.path.lexists(path) and not name.startswith("tests/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if path.is_symlink():
                (folder / name).symlink_to(path.readlink())
            else:
                (folder / name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture(scope="session")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the sdist of the checkout, as they are published."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    return next(folder.glob("ropewalk-*.whl"))


@pytest.fixture(scope="session")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ropewalk` in an environment of its own that sees this one's dependencies, but not this checkout."""
    home = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    python = home / "bin/python"
    site = next(home.glob("lib/python3.*/site-packages"))
    options = ["--quiet", "--no-deps", "--no-index", "--no-compile"]  # commands compile what they import
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), "install", *options, str(wheel)], check=True)
    # a path file of plain directories: editable installs of the outer environment are not seen through it
    outer = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(outer) + "\n")
    return home / "bin/ropewalk"


def run(command: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the installed program in a folder, as a user would."""
    environment = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "ROPEWALK_RUNS", "ROPEWALK_CLUSTERS"}}
    return subprocess.run([command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False)

"""Real Slurm clusters on this machine: one for the session, others for tests that break theirs; and an ordinary user."""

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ropewalk.slurm.lab.cluster import Lab, missing_programs
from ropewalk.slurm.lab.config import LabSettings
from tests.patience import HANG_SECONDS, Patience, until
from tests.slurm.accounting import AccountingLab, missing_to_account

MakeLab = Callable[..., Lab]
ROOT = Path(__file__).resolve().parents[2]


def need_slurm(accounting: bool = False) -> None:
    """Skip, with the remedy, where Slurm is not installed."""
    if remedy := missing_programs() or (accounting and missing_to_account()):
        pytest.skip(f"needs Slurm: {remedy}")


def short_folder() -> Path:
    """A folder that every user may enter, with a path short enough for sockets; pytest's own are neither."""
    folder = Path(tempfile.mkdtemp(prefix="s", dir=tempfile.gettempdir()))
    folder.chmod(0o755)
    return folder


@pytest.fixture(scope="package")
def slurm_lab() -> Iterator[Lab]:
    """A cluster of four nodes for the session, that `sbatch` and all find by itself. Leave it as it was: all nodes idle."""
    need_slurm()
    lab = Lab(short_folder())
    patch = pytest.MonkeyPatch()
    try:
        lab.up()
        patch.setenv("SLURM_CONF", lab.env["SLURM_CONF"])
        yield lab
    finally:
        patch.undo()
        lab.down()


@pytest.fixture
def make_lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeLab]:
    """Bring up a cluster of one's own, by LabSettings' keywords; the last one made is the one that `sbatch` finds."""
    labs: list[Lab] = []

    def make(*, accounting: bool = False, **settings: Any) -> Lab:
        need_slurm(accounting)
        lab = (AccountingLab if accounting else Lab)(short_folder())
        labs.append(lab)
        lab.up(LabSettings(**settings))
        monkeypatch.setenv("SLURM_CONF", lab.env["SLURM_CONF"])
        return lab

    yield make
    for lab in labs:
        lab.down()
        shutil.rmtree(lab.folder, ignore_errors=True)


@dataclass(frozen=True)
class OrdinaryUser:
    """Somebody who is not root, with a home that is his."""

    name: str
    uid: int
    gid: int
    home: Path

    def run(self, *arguments: str | Path, seconds: float = HANG_SECONDS, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command as this user in his home; never raises for its exit code."""
        environment = {**os.environ, "HOME": str(self.home), "USER": self.name, "LOGNAME": self.name, "TMPDIR": str(self.home)}
        environment |= {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **env}
        return subprocess.run(
            [*self._become(), *arguments],
            cwd=self.home,
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def _become(self) -> list[str]:
        if os.geteuid():
            return []
        arguments = ["setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups"]
        home = Path(sys.base_prefix)
        if all(folder.stat().st_mode & 0o1 for folder in (home, *home.parents)):
            return arguments
        # Python lies in root's home, say: this user may look at files there, and is ordinary in all else
        return [*arguments, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]


@pytest.fixture
def ordinary_user() -> Iterator[OrdinaryUser]:
    """`nobody` where the tests run as root, else whoever runs them."""
    entry = pwd.getpwuid(os.geteuid()) if os.geteuid() else pwd.getpwnam("nobody")
    home = short_folder()
    if not os.geteuid():
        os.chown(home, entry.pw_uid, entry.pw_gid)
    yield OrdinaryUser(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid, home=home)
    shutil.rmtree(home, ignore_errors=True)


def cancel_jobs(*names: str) -> bool:
    """Cancel all jobs of these names; return True if there were none. (scancel takes one name, squeue several.)"""
    listing = ["squeue", "--noheader", "--array", "--format=%i", f"--name={','.join(names)}"]
    ids = subprocess.run(listing, capture_output=True, text=True, check=False).stdout.split()
    if ids:
        subprocess.run(["scancel", *ids], check=False)
    return not ids


def end_jobs(*names: str) -> None:
    """Cancel jobs until none is left: one that has just been asked to stop may requeue itself behind the first word."""
    until(lambda: cancel_jobs(*names), Patience.STEP, look_seconds=0.2)


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Start toy runs (see `SlurmToy`); their jobs are cancelled with the test."""
    from tests.slurm.toy import SlurmToy

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    started: list[SlurmToy] = []

    def make(entry: str = "count", engine: str = "ranks", **settings: Any) -> SlurmToy:
        started.append(SlurmToy(tmp_path / "runs", entry, engine, **settings))
        return started[-1]

    yield make
    names = [name for run in started for name in (f"ropewalk-{run.run.id}", f"ropewalk-more-{run.job}")]
    if names:
        cancel_jobs(*names)


@pytest.fixture
def tick(start: Callable[..., Any]) -> Callable[..., Any]:
    """Start runs of one process that loads nothing and counts."""
    return partial(start, "tick", "process")

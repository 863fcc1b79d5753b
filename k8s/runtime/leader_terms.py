"""Which pod carries the run: numbered files in the run directory, of which the newest counts.

A claim is the creation of a file whose name only grows, so two pods can never both believe to be first. The next may be
made only when the pod of the newest has left, or is dead by the word of the API server: a pod that is cut off cannot
ask, and so can take nothing over.
"""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.backends.submission import submission_details
from cluster.run.directory import RunDir
from cluster.run.key import new_key, write_private

FOLDER = "carriers"
UNFINISHED_SECONDS = 10.0  # after which a claim without content is that of a pod that died as it wrote


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A pod that carries the run, or did."""

    number: int
    pod: str = ""
    uid: str = ""
    index: int = -1
    address: str = ""
    port: int = 0
    unfinished: bool = False  # it is being written


def newest(run: RunDir) -> Claim | None:
    """The claim that counts; None: there was none yet."""
    folder = run.path / FOLDER
    try:
        numbers = [int(name) for name in os.listdir(folder) if name.isdigit()]
    except FileNotFoundError:
        return None
    return _read(folder / f"{max(numbers):06d}") if numbers else None


def before(run: RunDir, claim: Claim) -> Claim | None:
    """The claim that this one has taken the run over from."""
    path = run.path / FOLDER / f"{claim.number - 1:06d}"
    return _read(path) if path.exists() else None


def take(run: RunDir, claim: Claim) -> bool:
    """Make a claim, and a key for it; False: somebody else has made the same, and carries the run."""
    folder = run.path / FOLDER
    folder.mkdir(exist_ok=True)
    secret = _key_file(run, claim)
    secret.unlink(missing_ok=True)  # of an earlier claim of this pod: nobody joins that any more
    write_private(secret, new_key())  # before the claim: who has read that finds it
    try:
        with (folder / f"{claim.number:06d}").open("x") as stream:
            stream.write(json.dumps(asdict(claim)))
    except FileExistsError:
        return False
    return True


def key_of(run: RunDir, claim: Claim) -> str:
    """By which the run's pods prove to each other that they are some. Raises OSError if there is none."""
    return _key_file(run, claim).read_text()


def give_up(run: RunDir, claim: Claim) -> None:
    """The pod leaves; whoever can may carry the run from here."""
    (run.path / FOLDER / f"{claim.number:06d}.left").touch()


def given_up(run: RunDir, claim: Claim) -> bool:
    """Whether the pod has left in order."""
    return (run.path / FOLDER / f"{claim.number:06d}.left").exists()


def say_leaving(run: RunDir, claim: Claim) -> None:
    """The pod is asked to go, and still saves: others that the run needs for it stay until it has left."""
    (run.path / FOLDER / f"{claim.number:06d}.leaving").touch()


def leaving(run: RunDir, claim: Claim) -> bool:
    """Whether the pod has said so, and not left yet."""
    return (run.path / FOLDER / f"{claim.number:06d}.leaving").exists() and not given_up(run, claim)


def displaced(run: RunDir, claim: Claim, carrier: str) -> str:
    """Who carries the run by now, and why, if it is no longer this pod of the object `carrier`; else nothing."""
    last = newest(run)
    if last is not None and last.number > claim.number:
        return f"pod {last.pod} leads the run by now: this pod lost leadership (it was presumed dead)"
    if (name := submission_details(run).get("name")) != carrier:
        return f"{name} carries the run by now: it was submitted again"
    return ""


def _key_file(run: RunDir, claim: Claim) -> Path:
    return run.path / FOLDER / f".{claim.uid}.key"


def _read(path: Path) -> Claim:
    number = int(path.name)
    try:
        return Claim(**json.loads(path.read_text()))
    except ValueError:
        return Claim(number=number, unfinished=time.time() - path.stat().st_mtime < UNFINISHED_SECONDS)

"""`ropewalk doctor`: check this machine and a cluster, each check with what was found and the remedy."""

import os
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version

from ropewalk.cluster.backends.base import Check
from ropewalk.cluster.backends.profiles import load_backend, profile_file
from ropewalk.cluster.errors import RopewalkError
from ropewalk.cluster.run.directory import RUNS_VARIABLE, runs_root
from ropewalk.cluster.run.file_systems import CACHING, COHERENT, PASSING, Mount, mount_of

NEEDED = ("torch", "ray", "transformers", "tokenizers", "pyarrow", "numba", "wandb")
FREE_GIB = 2.0


def checks(cluster: str) -> list[Check]:
    """Run this machine's checks, then the cluster's own."""
    found = [_python(), *_packages(), _runs(), _file_system(), _profiles(), _git()]
    try:
        return [*found, *load_backend(cluster).checks()]
    except RopewalkError as error:
        return [*found, Check(name=f"cluster {cluster}", ok=False, detail=str(error))]


def _python() -> Check:
    words = ".".join(str(part) for part in sys.version_info[:3])
    return Check(name="python", ok=sys.version_info >= (3, 11), detail=f"{words} at {sys.executable}")


def _packages() -> list[Check]:
    missing, there = [], []
    for name in NEEDED:
        try:
            there.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    found = [Check(name="packages", ok=True, detail=", ".join(there))]
    if missing:
        found.append(Check(name="missing packages", ok=False, detail=f"pip install {' '.join(missing)}"))
    return found


def _runs() -> Check:
    root = runs_root()
    place = root
    while not place.exists():
        place = place.parent
    free_gib = shutil.disk_usage(place).free / 2**30
    if not os.access(place, os.W_OK):
        return Check(name="runs", ok=False, detail=f"{root}: not writable; set ${RUNS_VARIABLE} to a directory of yours")
    more = "" if free_gib > FREE_GIB else f"; less than {FREE_GIB} GiB: free some, or set ${RUNS_VARIABLE}"
    return Check(name="runs", ok=free_gib > FREE_GIB, detail=f"{root}, {free_gib:.0f} GiB free{more}")


def _file_system() -> Check:
    mount = mount_of(runs_root())
    hurts = what_hurts(mount)
    # those without close-to-open consistency break promises; the others only annoy
    return Check(
        name="runs' file system", ok="nocto" not in mount.options, detail=f"{mount.kind or 'unknown'}{hurts and f': {hurts}'}"
    )


def what_hurts(mount: Mount) -> str:
    """The trouble that runs have on such a file system, and the remedy; empty if they have none."""
    move = f"set ${RUNS_VARIABLE} to a disk or a shared file system"
    if "nocto" in mount.options:
        return f"mounted with nocto, so an old attempt may not see that it has a successor; mount it without nocto, or {move}"
    if mount.kind in CACHING:
        return (
            "other machines may see new files up to a minute late in `ps`, `logs` and `show`; runs do not depend on it; to avoid "
            "it, mount with lookupcache=positive,acdirmax=5"
        )
    if mount.kind in COHERENT:
        return "many small files are slow on it; with hundreds of runs keep `checkpoint.keep` low and `log_every` high"
    if mount.kind in PASSING:
        gone = "with the container" if mount.kind == "overlay" else "when the machine restarts"
        return f"runs on it are gone {gone}, and no other machine sees them; {move} to keep them"
    if mount.shared:
        return (
            f"when other machines see a new file depends on its server; if you use several machines, {move} such as NFS or Lustre"
        )
    return ""


def _profiles() -> Check:
    path = profile_file()
    if path is not None and not path.is_file():
        return Check(name="clusters", ok=False, detail=f"{path}: no such file; correct $ROPEWALK_CLUSTERS, or write the file")
    return Check(name="clusters", ok=True, detail=str(path) if path else "no profile file; --on knows local, slurm and k8s")


def _git() -> Check:
    found = shutil.which("git")
    detail = found or "not found, so runs do not record the code that they run; install git"
    return Check(name="git", ok=found is not None, detail=detail)

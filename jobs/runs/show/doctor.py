"""Checks of `ropewalk doctor` for this machine and a cluster, with remedies."""

import os
import shutil
import socket
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ropewalk.cluster.agent.node_checks import Finding, local_checks
from ropewalk.cluster.backends.base import Backend, Check
from ropewalk.cluster.backends.profiles import load_backend, profile_file
from ropewalk.cluster.errors import RopewalkError
from ropewalk.cluster.gpus import machine_devices
from ropewalk.cluster.installed import REMEDY, is_light
from ropewalk.cluster.packages.archive import FOLDER as PACKAGES_FOLDER
from ropewalk.cluster.packages.build import hash_of, inputs_of
from ropewalk.cluster.run.directory import RUNS_VARIABLE, runs_root
from ropewalk.cluster.run.file_systems import CACHING, COHERENT, PASSING, Mount, mount_of
from ropewalk.cluster.run.files import read_json

NEEDED = ("torch", "ray", "transformers", "tokenizers", "pyarrow", "numba", "wandb")
FREE_GIB = 2.0


def checks(cluster: str) -> list[Check]:
    """Run the checks of this machine and of a cluster."""
    results = [_python(), *_packages(cluster), _runs(), _file_system(), *_node(), _profiles(), _git()]
    try:
        backend = load_backend(cluster)
        return [*results, *backend.checks(), _secrets(backend), *_environment(backend)]
    except RopewalkError as error:
        return [*results, Check(name=f"cluster {cluster}", ok=False, detail=str(error))]


def _secrets(backend: Backend) -> Check:
    """List the secrets that are set, without their values."""
    on = "" if backend.cluster.name == "local" else f" --on {backend.cluster.name}"
    try:
        store = backend.secret_store()
        names = ", ".join(store.names())
    except RopewalkError as error:
        return Check(name="secrets", ok=False, detail=str(error), optional=True)
    detail = f"{names}, in {store.location}" if names else f"none; `ropewalk secret set NAME{on}` sets one"
    return Check(name="secrets", ok=True, detail=detail)


def _environment(backend: Backend) -> list[Check]:
    """Compare the environment of the cluster's profile with the newest one that was built. Raises ConfigError."""
    wanted = backend.packages(None)
    if wanted is None:
        return []
    if wanted.uv is None:
        return [Check(name="packages", ok=Path(str(wanted.path)).exists(), detail=f"{wanted.path}, packed at each submission")]
    root = Path(str(backend.cluster.options.get("runs") or runs_root())).expanduser()
    inputs = inputs_of(Path(wanted.uv))
    if (root / PACKAGES_FOLDER / f"{hash_of(inputs)}.json").is_file():
        return [Check(name="packages", ok=True, detail=f"{wanted.uv} is built, as {hash_of(inputs)}")]
    newest = max((root / PACKAGES_FOLDER).glob("*.json"), key=lambda path: path.stat().st_mtime, default=None)
    earlier = (read_json(newest) if newest is not None else None) or {}
    differences = [f"{key} was {earlier[key]}, is {value}" for key, value in inputs.items() if earlier.get(key, value) != value]
    note = f"; the newest there differs: {'; '.join(differences)}" if differences else ""
    return [Check(name="packages", ok=True, detail=f"{wanted.uv} is not built yet, the next submission does it{note}")]


def _python() -> Check:
    python = ".".join(str(part) for part in sys.version_info[:3])
    return Check(name="python", ok=sys.version_info >= (3, 11), detail=f"{python} at {sys.executable}")


def _packages(cluster: str) -> list[Check]:
    if is_light():
        detail = f"those of jobs are not installed: {REMEDY}; not needed to use clusters whose profiles have a `host`"
        return [Check(name="packages", ok=False, detail=detail, optional=cluster == "local")]
    missing, installed = [], []
    for name in NEEDED:
        try:
            installed.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    results = [Check(name="packages", ok=True, detail=", ".join(installed))]
    if missing:
        results.append(Check(name="missing packages", ok=False, detail=f"pip install {' '.join(missing)}"))
    return results


def _runs() -> Check:
    root = runs_root()
    folder = root
    while not folder.exists():
        folder = folder.parent
    free_gib = shutil.disk_usage(folder).free / 2**30
    if not os.access(folder, os.W_OK):
        return Check(name="runs", ok=False, detail=f"{root}: not writable; set ${RUNS_VARIABLE} to a directory of yours")
    remedy = "" if free_gib > FREE_GIB else f"; less than {FREE_GIB} GiB: free some space, or set ${RUNS_VARIABLE}"
    return Check(name="runs", ok=free_gib > FREE_GIB, detail=f"{root}, {free_gib:.0f} GiB free{remedy}")


def _file_system() -> Check:
    mount = mount_of(runs_root())
    limitation = known_limitation(mount)
    # without close-to-open consistency fencing does not work; other limitations are only inconvenient
    return Check(
        name="runs' file system",
        ok="nocto" not in mount.options,
        detail=f"{mount.kind or 'unknown'}{limitation and f': {limitation}'}",
    )


def known_limitation(mount: Mount) -> str:
    """Return the limitation of a file system for runs with a remedy, or an empty string."""
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


def _node() -> list[Check]:
    """Check this machine as runs with `resources.check_nodes` check their nodes; what is wrong hinders only some runs."""
    folder, address = runs_root(), socket.gethostname()
    while not folder.exists():
        folder = folder.parent
    checks = []
    for name, check in local_checks(folder, address, len(machine_devices())).items():
        try:
            finding = check()
        except (OSError, ModuleNotFoundError) as error:  # a light install has no torch, with which GPUs compute
            finding = Finding(name, str(error), "see the lines above")
        detail = f"{finding.value}; {finding.remedy}" if finding.remedy else finding.value
        checks.append(Check(name=name, ok=not finding.remedy, detail=detail, optional=True))
    return checks


def _profiles() -> Check:
    path = profile_file()
    if path is not None and not path.is_file():
        return Check(name="clusters", ok=False, detail=f"{path}: no such file; correct $ROPEWALK_CLUSTERS, or write the file")
    return Check(name="clusters", ok=True, detail=str(path) if path else "no profile file; --on knows local, slurm and k8s")


def _git() -> Check:
    git = shutil.which("git")
    detail = git or "not found, so runs do not record the code that they run; install git"
    return Check(name="git", ok=git is not None, detail=detail)

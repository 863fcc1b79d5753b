"""The lab of ../shared/tools/k8s: a real cluster of three nodes on this machine, and a Python that its pods may run."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.k8s.cluster import REMEDY, ROOT, Cluster

LAB_VARIABLE = "ROPEWALK_KUBE_LAB"
OPERATORS = "kueue,kwok"
NODES = 3
_ending: list[subprocess.Popen[bytes]] = []  # clusters that are taken down


@contextmanager
def lab_cluster() -> Iterator[Cluster]:
    """A cluster of three nodes on this machine, that goes with the session; nobody waits for its end but the next cluster."""
    script = lab_script()
    if script is None or os.geteuid():
        pytest.skip(REMEDY)
    while _ending:
        _ending.pop().wait()
    home = Path(tempfile.mkdtemp(prefix="ropewalk-k8s-", dir="/var/tmp"))  # /tmp of a pod is its own
    try:
        with closing(bring_up(script, home)) as cluster:
            yield cluster
    finally:
        down = ["sh", "-c", '"$0" down "$1/lab"; rm -rf "$1"', script, home]
        silent = subprocess.DEVNULL
        _ending.append(subprocess.Popen(down, stdin=silent, stdout=silent, stderr=silent, start_new_session=True))


def lab_script() -> Path | None:
    """The script that brings up the lab, if it is there."""
    named = os.environ.get(LAB_VARIABLE)
    script = Path(named) if named else ROOT.parent / "shared/tools/k8s/kube-lab.sh"
    return script if script.is_file() else None


def bring_up(script: Path, home: Path) -> Cluster:
    """The lab in a folder, and a Python for its pods."""
    home.chmod(0o755)
    environment = make_python(home / "python")
    lab = home / "lab"
    done = subprocess.run(
        [script, "up", lab, str(NODES), OPERATORS],
        # its programs are unpacked once a machine, not once a session
        env={**os.environ, "TMPDIR": tempfile.gettempdir(), "KUBE_LAB_MOUNTS": f"{home / 'python'} {ROOT}"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    keep_bridge_address()
    return Cluster(
        kubeconfig=lab / "admin.kubeconfig",
        shared=lab / "shared",
        image="local.test/machine:1",
        python=str(home / "python/venv/bin/python"),
        environment=environment,
        folder=lab,
        script=script,
        path=(lab / "env.sh").read_text().partition("PATH=")[2].partition(":")[0].strip("\"'"),
    )


def keep_bridge_address() -> None:
    """Let the bridge between the nodes keep its hardware address as nodes go.

    By default it has the lowest one of its ports. When that node dies, the others cannot reach the API server and DNS for 10 s.
    """
    listed = subprocess.run(["ip", "-json", "link", "show", "type", "bridge"], capture_output=True, text=True, check=True).stdout
    for bridge in json.loads(listed):
        if bridge["ifname"].startswith("klab"):
            subprocess.run(["ip", "link", "set", bridge["ifname"], "address", bridge["address"]], check=True)


def make_python(folder: Path) -> dict[str, str]:
    """A virtual environment with all packages of this one and this checkout, for users who may not enter root's home.

    Returns the variables that it needs.
    """
    base, version = Path(sys.base_prefix), f"python{sys.version_info.major}.{sys.version_info.minor}"
    variables: dict[str, str] = {}
    if closed(base):
        ignored = shutil.ignore_patterns("site-packages", "test", "share", "*.a")
        shutil.copytree(base, folder / "base", symlinks=True, ignore=ignored)
        base, variables = folder / "base", {"LD_LIBRARY_PATH": str(folder / "base/lib")}
    make = [base / "bin" / version, "-m", "venv", "--without-pip", "--symlinks", folder / "venv"]
    subprocess.run(make, env={**os.environ, **variables}, check=True)
    places = [ROOT, ROOT / "src", *(Path(path) for path in sys.path if path.endswith("site-packages"))]
    checkout, *paths = map(str, where_pods_see(places, folder))
    only_tests = folder / "only-tests"  # the checkout's other folders have names that a user's project may have
    only_tests.mkdir()
    (only_tests / "tests").symlink_to(f"{checkout}/tests")
    (folder / "venv/lib" / version / "site-packages/all.pth").write_text("\n".join([str(only_tests), *paths, ""]))
    return variables


def closed(directory: Path) -> bool:
    """Return True if other users may not enter the directory."""
    return any(not folder.stat().st_mode & 0o1 for folder in (directory, *directory.parents))


def where_pods_see(places: Sequence[Path], folder: Path) -> Iterator[Path]:
    """Yield paths of the folders for pods: hard-link copies in `folder` for those below /tmp, or closed to others."""
    copies: dict[Path, Path] = {}
    for location in places:
        if not location.is_relative_to("/tmp") and not closed(location):
            yield location
            continue
        original = next((each for each in copies if location.is_relative_to(each)), location)
        if original not in copies:
            copies[original] = folder / f"copy-{len(copies)}"
            same_disk = original.stat().st_dev == folder.stat().st_dev
            subprocess.run(["cp", "-al" if same_disk else "-a", original, copies[original]], check=True)
            copies[original].chmod(0o755)
        yield copies[original] / location.relative_to(original)

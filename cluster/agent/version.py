"""Comparison of a node's installed version with the version that a run was submitted with."""

from ropewalk.cluster.installed import installed_versions
from ropewalk.cluster.run.directory import RunDir

PACKAGE = "ropewalk"


def installed_version() -> str | None:
    """Return the version of this program on this node, or None if it is not installed as a package."""
    return installed_versions([PACKAGE])[PACKAGE]


def other_version(run: RunDir) -> tuple[str, str] | None:
    """Return the versions (of the submission, of this node) if they differ, else None; also None if the run has a code copy."""
    record = run.record
    wanted = (record.get("versions") or {}).get(PACKAGE)
    if not wanted or run.code_is_program or record.get("cluster") == "local":
        return None
    here = installed_version()
    return (str(wanted), here) if here is not None and here != wanted else None


def are_incompatible(wanted: str, here: str) -> bool:
    """Return True unless two versions differ only in their patch number, so that they can read each other's files."""
    return wanted.split(".")[:2] != here.split(".")[:2]

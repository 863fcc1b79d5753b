"""Whether a node has the version of this program that its run was submitted with, where that brings no copy of the code."""

from ropewalk.cluster.installed import installed_versions
from ropewalk.cluster.run.directory import RunDir

PACKAGE = "ropewalk"


def installed_version() -> str | None:
    """The version of this program on this node; None where it is not installed as a package."""
    return installed_versions([PACKAGE])[PACKAGE]


def other_version(run: RunDir) -> tuple[str, str] | None:
    """The versions (of the submission, of this node) if they differ; None if they do not, or the run brings its own code."""
    record = run.record
    wanted = (record.get("versions") or {}).get(PACKAGE)
    if not wanted or run.code_is_program or record.get("cluster") == "local":
        return None
    here = installed_version()
    return (str(wanted), here) if here is not None and here != wanted else None


def too_far_apart(wanted: str, here: str) -> bool:
    """Whether two versions may not read each other's files: a fix of the same version may, anything else may not."""
    return wanted.split(".")[:2] != here.split(".")[:2]

"""The Hugging Face directory of a version for an engine; a checkpoint is exported on first use.

Usage on the machine with the runs: python -m ropewalk.jobs.models.registry.directory NAME@NUMBER [ROOT]
"""

import argparse
import secrets
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from ropewalk.cluster.errors import ConfigError, RopewalkError
from ropewalk.cluster.run.directory import RunDir, runs_root
from ropewalk.cluster.run.files import make_private
from ropewalk.jobs.models.registry.weights import check_weights, publish_export
from ropewalk.jobs.runs.models.model_versions import Version, exported_directory, find_version


def model_directory(version: Version) -> Path:
    """Return the directory of a version, exporting a checkpoint first if needed. Raises ConfigError, CheckpointError."""
    if (existing := exported_directory(version)) is not None:
        return existing
    if version.path is not None:
        raise ConfigError(f"{version.id}: {version.path} no longer exists; restore it, or `ropewalk rollback`")
    check_weights(version)
    from ropewalk.jobs.models.cards.export import export_with_cards

    target = version.directory
    with suppress(FileExistsError):
        make_private(target.parent)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        export_with_cards(RunDir(version.root / str(version.run)), partial, version.step)
        with suppress(OSError):  # another process was faster; the exported bytes are the same
            publish_export(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if exported_directory(version) is None:
        raise ConfigError(f"{version.id}: {target} is not a model directory; remove it, and it is exported again")
    return target


def main() -> None:
    """Print the directory of a version."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version")
    parser.add_argument("root", type=Path, nargs="?")
    arguments = parser.parse_args()
    try:
        version = find_version(arguments.version, arguments.root or runs_root())
        if version is None:
            raise ConfigError(f"{arguments.version!r} is not a version of the registry")
        sys.stdout.write(f"{model_directory(version)}\n")
    except RopewalkError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

"""The Hugging Face directory of a version, which an engine opens: a checkpoint is exported once, whoever asks first.

Usage on the machine where the runs lie: python -m ropewalk.jobs.models.registry.directory NAME@NUMBER [ROOT]
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
from ropewalk.jobs.runs.models.model_versions import Version, exported_directory, find_version


def model_directory(version: Version) -> Path:
    """The directory of a version; one that is a run's checkpoint is exported first. Raises ConfigError, CheckpointError."""
    if (found := exported_directory(version)) is not None:
        return found
    if version.path is not None:
        raise ConfigError(f"{version.id}: {version.path} is gone; put it back, or `ropewalk rollback`")
    from ropewalk.jobs.models.cards.export import export_with_cards

    place = version.directory
    with suppress(FileExistsError):
        make_private(place.parent)
    partial = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    try:
        export_with_cards(RunDir(version.root / str(version.run)), partial, version.step)
        with suppress(OSError):  # somebody else was faster; a checkpoint is exported to the same bytes
            partial.rename(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if exported_directory(version) is None:
        raise ConfigError(f"{version.id}: {place} is no model's directory; remove it, and it is exported anew")
    return place


def main() -> None:
    """Print the directory of one version."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version")
    parser.add_argument("root", type=Path, nargs="?")
    words = parser.parse_args()
    try:
        found = find_version(words.version, words.root or runs_root())
        if found is None:
            raise ConfigError(f"{words.version!r} is no version of the registry")
        sys.stdout.write(f"{model_directory(found)}\n")
    except RopewalkError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

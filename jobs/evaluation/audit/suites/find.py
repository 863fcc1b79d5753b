"""Suites by name: files of the user, in a folder given by a key or a variable."""

import difflib
import os
import re
from pathlib import Path

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.input_paths import absolute

FOLDER_VARIABLE = "ROPEWALK_SUITES"
# file names of each suite, as published by its authors and in benchmark collections
BUILT_IN: dict[str, tuple[str, ...]] = {
    "crows_pairs": ("crows_pairs_anonymized.csv", "crows_pairs.csv", "Crows-Pairs/test.csv"),
    "stereoset": ("stereoset.json", "dev.json", "stereoset.jsonl", "StereoSet/test.jsonl"),
    "winobias": ("winobias.jsonl", "pro_stereotyped_type1.txt.test", "Wino-test/test.jsonl"),
}


def resolve_suite(reference: str, folder: str | None) -> tuple[str, str]:
    """Return (name, absolute path or URL) of a built-in suite or a file, which need not exist. Raises ConfigError."""
    if reference in BUILT_IN:
        root = folder or os.environ.get(FOLDER_VARIABLE)
        if not root:
            raise ConfigError(f"suites: {reference} needs a file; set suites_folder, or ${FOLDER_VARIABLE}")
        paths = [Path(root).expanduser().absolute() / name for name in BUILT_IN[reference]]
        return reference, str(next(filter(Path.is_file, paths), paths[0]))
    if not _is_file_name(reference):
        near = difflib.get_close_matches(reference, BUILT_IN, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"suites: {reference!r} is neither a file nor one of {', '.join(BUILT_IN)}{hint}")
    return _name(reference), absolute(reference)


def other_names(path: str) -> str:
    """Return the other file names of a built-in suite whose first one is missing, as part of a message; empty for other files."""
    names = next((names for names in BUILT_IN.values() if path.endswith(f"/{names[0]}")), ())
    return f", nor {' or '.join(names[1:])} in its place" if names else ""


def _is_file_name(reference: str) -> bool:
    return "/" in reference or "." in reference or Path(reference).is_file()


def _name(reference: str) -> str:
    """Return a file's name without its ending, in the letters allowed in a score's name."""
    stem = reference.rstrip("/").rpartition("/")[2].split(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "_", stem) or "suite"

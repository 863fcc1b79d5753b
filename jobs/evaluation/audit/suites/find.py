"""Suites by name: files that the user has, in a folder that a key or a variable names."""

import difflib
import os
import re
from pathlib import Path

from ropewalk.cluster.config import absolute
from ropewalk.cluster.errors import ConfigError

FOLDER_VARIABLE = "ROPEWALK_SUITES"
# the names under which each suite is passed on, by its authors and by packages of benchmark data
BUILT_IN: dict[str, tuple[str, ...]] = {
    "crows_pairs": ("crows_pairs_anonymized.csv", "crows_pairs.csv", "Crows-Pairs/test.csv"),
    "stereoset": ("stereoset.json", "dev.json", "stereoset.jsonl", "StereoSet/test.jsonl"),
    "winobias": ("winobias.jsonl", "pro_stereotyped_type1.txt.test", "Wino-test/test.jsonl"),
}


def resolve_suite(word: str, folder: str | None) -> tuple[str, str]:
    """(name, absolute path or URL) of a suite: a built-in name, or a file. Raises ConfigError with what would help."""
    if word in BUILT_IN:
        root = folder or os.environ.get(FOLDER_VARIABLE)
        if not root:
            raise ConfigError(f"suites: {word} is read from a file that you have; set suites_folder, or ${FOLDER_VARIABLE}")
        for name in BUILT_IN[word]:
            if (Path(root).expanduser() / name).is_file():
                return word, str((Path(root).expanduser() / name).absolute())
        raise ConfigError(f"suites: {word}: {root} has none of {', '.join(BUILT_IN[word])}; copy one there, or name its file")
    if not _is_file_name(word):
        near = difflib.get_close_matches(word, BUILT_IN, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"suites: {word!r} is neither a file nor one of {', '.join(BUILT_IN)}{hint}")
    return _name(word), absolute(word)


def _is_file_name(word: str) -> bool:
    return "/" in word or "." in word or Path(word).is_file()


def _name(word: str) -> str:
    """A file's name without its ending, in letters that a score's name may have."""
    stem = word.rstrip("/").rpartition("/")[2].split(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "_", stem) or "suite"

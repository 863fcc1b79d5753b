"""Unpacking in a pod, also over existing files."""

import io
import os
from pathlib import Path

import pytest

from ropewalk.cluster.run.code_copy import digest_on_disk, pack_code, unpack_code


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """Code with a program, a link and a folder."""
    folder = tmp_path / "code"
    (folder / "pkg").mkdir(parents=True)
    (folder / "pkg/a.py").write_text("A = 1\n")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "b.py").symlink_to("pkg/a.py")
    return folder


def test_code_that_was_put_there_before_is_not_trusted_for_its_name(code: Path, tmp_path: Path) -> None:
    digest, archive = digest_on_disk(code), pack_code(code)
    target = tmp_path / "volume/.code" / digest
    (target / "pkg").mkdir(parents=True)
    (target / "pkg/a.py").write_text("A = 'planted'\n")
    unpack_code(io.BytesIO(archive), target)
    assert (target / "pkg/a.py").read_text() == "A = 1\n"
    assert (os.readlink(target / "b.py"), digest_on_disk(target)) == ("pkg/a.py", digest)
    inode = target.stat().st_ino
    unpack_code(io.BytesIO(b"never looked at"), target)
    assert target.stat().st_ino == inode


def test_code_that_is_not_what_its_name_says_is_refused(code: Path, tmp_path: Path) -> None:
    archive = pack_code(code)
    with pytest.raises(ValueError, match="does not match its name"):
        unpack_code(io.BytesIO(archive), tmp_path / "volume/.code" / ("0" * 32))


def test_what_is_unpacked_is_its_user_s_alone(code: Path, tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    target = tmp_path / "volume/.code" / digest_on_disk(code)
    unpack_code(io.BytesIO(pack_code(code)), target)
    assert target.parent.stat().st_mode & 0o777 == 0o700

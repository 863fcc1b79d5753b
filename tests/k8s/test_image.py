"""The requirements file of the image: made by pip alone, from any index, and installed by hash."""

import base64
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.cluster.conftest import ROOT

IMAGE = ROOT / "k8s/image"


def write_wheel(folder: Path, name: str, version: str, needs: str = "", code: str = "") -> Path:
    path, info = folder / f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
    requires = f"Requires-Dist: {needs}\n" if needs else ""
    files = {
        f"{name}.py": code,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {
        file: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=") for file, text in files.items()
    }
    files[f"{info}/RECORD"] = "".join(f"{file},sha256={digest.decode()},\n" for file, digest in digests.items())
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip's settings name, with a build for CPUs."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    write_wheel(folder, "accelerator", "2.0+cpu")
    write_wheel(folder, "trainer", "1.5", needs="accelerator>=2")
    for name in ("PIP_CONSTRAINT", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.mark.soak("pip three times; make test checks that every installation asks for hashes")
def test_the_file_pins_everything_and_a_changed_package_is_refused(index: Path, tmp_path: Path) -> None:
    (tmp_path / "needed.txt").write_text("trainer>=1\n")
    resolve = [sys.executable, str(IMAGE / "lock.py"), "-r", str(tmp_path / "needed.txt")]
    text = subprocess.run(resolve, capture_output=True, text=True, check=True).stdout
    hashes = {path.name.partition("-")[0]: hashlib.sha256(path.read_bytes()).hexdigest() for path in index.iterdir()}
    assert text == (
        f"accelerator==2.0+cpu --hash=sha256:{hashes['accelerator']}\ntrainer==1.5 --hash=sha256:{hashes['trainer']}\n"
    )
    (tmp_path / "requirements.txt").write_text(text)

    (line,) = (line for line in (IMAGE / "Dockerfile").read_text().splitlines() if "--require-hashes" in line)
    install = [sys.executable, *line.partition("/bin/python ")[2].split(), "--target"]
    subprocess.run([*install, "first"], cwd=tmp_path, capture_output=True, check=True)
    assert (tmp_path / "first/accelerator.py").exists()
    write_wheel(index, "accelerator", "2.0+cpu", code="import os")
    refused = subprocess.run([*install, "second"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert not (tmp_path / "second/accelerator.py").exists()
    assert "DO NOT MATCH THE HASHES" in refused.stderr


def test_every_package_of_the_image_is_installed_by_hash() -> None:
    text = (IMAGE / "Dockerfile").read_text()
    installs = [line for line in text.splitlines() if "pip install" in line]
    assert [("--require-hashes" in line, line.endswith(" .")) for line in installs] == [(True, False), (False, True)]
    assert "--no-deps --no-build-isolation" in installs[1]

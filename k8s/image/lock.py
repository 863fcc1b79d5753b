"""Write the packages that pip would install here, with versions and hashes, as a requirements file to stdout.

Usage, in the environment that will install them: python lock.py pip's arguments, such as -c constraints.txt -r needed.txt
pip's own settings (PIP_INDEX_URL, PIP_FIND_LINKS, ...) choose where packages come from. The file is valid for this version of
Python, this platform and this source of packages, such as torch's builds for the CPU; it names no address.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote, urlsplit


def main() -> None:
    """Let pip resolve the arguments, and write what it reports."""
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--report", str(report)]
        done = subprocess.run([*pip, *sys.argv[1:]], stdout=sys.stderr, check=False)
        if done.returncode:
            sys.exit(done.returncode)
        packages = json.loads(report.read_text())["install"]
    lines = sorted(f"{p['metadata']['name']}=={p['metadata']['version']} --hash=sha256:{sha256_of(p)}" for p in packages)
    sys.stdout.write("\n".join(lines) + "\n")


def sha256_of(package: Any) -> str:
    """Return the hash of the file that pip chose."""
    info = package["download_info"]
    hashes = info.get("archive_info", {}).get("hashes") or {}
    if "sha256" in hashes:
        return str(hashes["sha256"])
    url = urlsplit(info["url"])
    if url.scheme != "file":
        sys.exit(f"error: {package['metadata']['name']}: the package index states no sha256; use one that does")
    with Path(unquote(url.path)).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main()

"""slurm/README.md names every module, script and template of slurm/ once, and none that is not there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2] / "slurm"


def test_the_readme_names_each_module_once() -> None:
    named = re.findall(r"`([\w/.]+\.(?:py|sh|sbatch))`", (ROOT / "README.md").read_text())
    there = [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.suffix in {".py", ".sh", ".sbatch"}]
    assert sorted(named) == sorted(str(path) for path in there if path.name != "__init__.py")

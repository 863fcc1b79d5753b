"""Measure all pairs of options, and write the page about them: python -m tests.combinations (some minutes)."""

import tempfile
from pathlib import Path

from tests.combinations.table import PAGE, measure, page

if __name__ == "__main__":  # the ranks import this module too
    with tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(page(*measure(Path(folder))))

"""Measure all pairs of options, and write the page about them: python -m tests.combinations [FOLDER] (some minutes).

A measurement that was interrupted goes on from its folder.
"""

import sys
import tempfile
from pathlib import Path

from tests.combinations.table import PAGE, measure, page

if __name__ == "__main__":  # the ranks import this module too
    with tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(page(*measure(Path(sys.argv[1] if len(sys.argv) > 1 else folder))))

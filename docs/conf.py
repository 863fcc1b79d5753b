"""Sphinx configuration. The reference of jobs and commands is written from the code before the pages are read."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1]))  # the tests have the list of models

from reference_pages import write_pages

project = "Ropewalk"
extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "Ropewalk"
exclude_patterns = ["_build"]

write_pages(Path(__file__).parent / "reference" / "generated")

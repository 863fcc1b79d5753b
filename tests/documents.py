"""README and the pages of docs, with their blocks of code."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "README.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md") if "generated" not in path.parts),
)


class Block(NamedTuple):
    """A block of code of a page."""

    page: str
    language: str
    text: str


def blocks(language: str, *pages: str) -> list[Block]:
    """Return the blocks in a language, in order; of all pages if none is named."""
    return [
        Block(page, language, text)
        for page in pages or PAGES
        for text in re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    ]


def files(*pages: str) -> dict[str, str]:
    """Return the files that pages define: YAML and Python, whose first line is a comment with the name."""
    results = {}
    for block in (*blocks("yaml", *pages), *blocks("python", *pages)):
        match = re.match(r"# ([\w-]+\.(?:yaml|py))\b", block.text)
        assert match is not None, f"{block.page}: the first line of {block.text!r} must name the file"
        results[match[1]] = block.text
    return results


def commands(*pages: str) -> list[tuple[str, str]]:
    """Return (page, line) of each line of shell, without its comment."""
    return [
        (block.page, re.split(r"\s+#", line)[0].rstrip())
        for block in blocks("sh", *pages)
        for line in block.text.splitlines()
        if line
    ]


def mentions() -> list[tuple[str, str]]:
    """Return (page, command) of each command in running text."""
    return [
        (page, match)
        for page in PAGES
        for match in re.findall(
            r"`(ropewalk [^`]+)`", re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
        )
    ]

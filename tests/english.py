"""The plain-English check of `make lint`: how docstrings start, and names that say nothing.

    python -m tests.english [PATH ...]

A docstring is a noun phrase or an imperative. An indirect question ("Whether ...") or a sentence without its subject ("It did
not answer.") makes a reader look at the code to learn what it means, and so does a variable called `found` or `one`.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("cluster", "datapipe", "jobs", "k8s", "sharding", "slurm", "tests", "src/ropewalk/__init__.py")
START = re.compile(r"(What|Whether|How|Which|Where|Why|Who|Whom|Whose|When|Of|It|Its|The same|As|For whom|That)\b", re.IGNORECASE)
NAMES = frozenset(["found", "one", "place", "words", "said", "asked", "told", "made", "given", "own", "kept", "seen", "known"])
KEYS = frozenset(["words"])  # keys of job files, which are fields of a class
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def problems(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, problem) for each docstring and each name of a file that the check refuses."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [node for node in nodes if isinstance(node, ast.Name | ast.arg)]
    for node in nodes:
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)) and START.match(text):
            yield getattr(node, "lineno", 1), f"docstring starts with {START.match(text)[0]!r}: {text.splitlines()[0]}"  # type: ignore[index]
    for node in names:
        name = node.arg if isinstance(node, ast.arg) else node.id
        if name not in NAMES or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)):
            continue
        classes = [each for each in nodes if isinstance(each, ast.ClassDef)] if name in KEYS else []
        if node not in [statement.target for each in classes for statement in each.body if isinstance(statement, ast.AnnAssign)]:
            yield node.lineno, f"the name {name!r} says nothing: name the value"


def main() -> None:
    """Print every problem of the files below the given paths, and exit with 1 if there is one."""
    roots = [Path(name) for name in sys.argv[1:]] or [ROOT / name for name in FOLDERS]
    paths = {path for root in roots for path in ([root] if root.is_file() else root.rglob("*.py"))}
    lines = [f"{path}:{line}: {problem}" for path in sorted(paths) for line, problem in sorted(problems(path))]
    sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()

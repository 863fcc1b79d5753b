"""The architecture, enforced: imports run downward, without cycles, and the command stays light."""

import ast
import os
import resource
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {"cluster": 0, "slurm": 1, "k8s": 1, "datapipe": 1, "sharding": 1, "jobs": 2}
HEAVY = ("torch", "ray", "transformers", "submitit")
HELP_CPU_SECONDS = 0.3


def modules() -> dict[str, Path]:
    """Every module of the program by its dotted name."""
    found = {}
    for folder in FLOORS:
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Dotted names that a module imports; with `top_level_only` those of its import, not those inside functions."""
    tree = ast.parse(path.read_text())
    nodes: list[ast.AST] = list(ast.walk(tree))
    if top_level_only:
        inside = {n for f in nodes if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) for n in ast.walk(f)}
        guarded = {n for i in nodes if isinstance(i, ast.If) and "TYPE_CHECKING" in ast.unparse(i.test) for n in ast.walk(i)}
        nodes = [node for node in nodes if node not in inside | guarded]
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_imports_run_downward_and_siblings_never_meet() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, path in modules().items()
        for other in {word.partition(".")[0] for word in imports(path)} & set(FLOORS)
        if other != (mine := name.partition(".")[0]) and FLOORS[other] >= FLOORS[mine]
    ]
    assert wrong == []


def test_no_cycles() -> None:
    known = modules()
    graph = {
        name: {word for word in imports(path, top_level_only=True) if word in known and word != name}
        for name, path in known.items()
    }
    list(TopologicalSorter(graph).static_order())  # raises CycleError with the cycle


def test_a_cycle_would_be_found() -> None:
    with pytest.raises(ValueError, match="cycle"):
        list(TopologicalSorter({"a": {"b"}, "b": {"a"}}).static_order())


def test_nothing_is_imported_from_the_tests() -> None:
    assert [name for name, path in modules().items() if any(w.partition(".")[0] == "tests" for w in imports(path))] == []


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["ps"],
        ["ps", "--all", "--json"],
        ["logs", "latest"],
        ["run", "pretrain", "--help"],
        ["submit", "pretrain", "data=data", "steps=1", "seq_len=8", "--dry-run"],
        ["submit", "preprocess", "input=[a.jsonl]", "output=out", "tokenizer={train: 300}", "--dry-run"],
    ],
    ids=lambda words: " ".join(words[:3]),
)
def test_the_command_imports_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    from cluster.run.directory import RunDir
    from tests.fakes.token_files import write_dataset

    write_dataset(tmp_path / "data", [100])
    (tmp_path / "a.jsonl").write_text('{"id": "1", "text": "one"}\n')
    run = RunDir.create("x", {"job": "pretrain", "cluster": "local", "config": {}, "resources": {"nodes": 1}}, tmp_path / "runs")
    run.begin_attempt()
    code = f"""
import sys
from jobs.cli import main as cli
try:
    cli.main()
finally:
    print("HEAVY", [name for name in {HEAVY} if name in sys.modules])
"""
    environment = {**os.environ, "ROPEWALK_RUNS": str(tmp_path / "runs")}
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_help_answers_at_once() -> None:
    """CPU, not wall-clock: other work on the machine does not count."""
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "jobs.cli", "--help"], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < HELP_CPU_SECONDS

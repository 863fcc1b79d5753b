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
# the rooms of a folder, the lowest first: each may import those below it, and none beside it
ROOMS: dict[str, tuple[set[str], ...]] = {
    "cluster": (
        {"cluster.errors", "cluster.installed", "cluster.spec", "cluster.text", "cluster.yaml_loader"},
        {"cluster.config", "cluster.fresh_reads"},
        {"cluster.config_reader", "cluster.gpus", "cluster.storage"},
        {"cluster.run"},
        {"cluster.process"},
        {"cluster.supervise"},
        {"cluster.engines"},
        {"cluster.agent", "cluster.backends"},
    ),
    "jobs": (
        {"jobs.registry", "jobs.configs"},
        {"jobs.tracking", "jobs.scores"},
        {"jobs.training", "jobs.runs", "jobs.programs"},
        {"jobs.inference", "jobs.cards", "jobs.mirror", "jobs.rollouts"},
        {"jobs.feedback", "jobs.pruning", "jobs.formats", "jobs.tasks"},
        {"jobs.engines"},
        {"jobs.drift", "jobs.models"},
        {
            *("jobs.preprocess", "jobs.pretrain", "jobs.finetune", "jobs.align", "jobs.evaluate", "jobs.audit"),
            *("jobs.sweep", "jobs.command", "jobs.function", "jobs.pipeline"),
            *("jobs.distill", "jobs.compress", "jobs.serve", "jobs.refresh", "jobs.collect"),
        },
        {"jobs.cli"},
    ),
    "k8s": (
        {"k8s.names"},
        {"k8s.profile"},
        {"k8s.api"},
        {"k8s.manifests", "k8s.runtime"},
        {"k8s.submission"},
        {"k8s.status"},
        {"k8s.volume"},
        {"k8s.backend"},
    ),
    "slurm": (
        {"slurm.times", "slurm.profile"},
        {"slurm.commands"},
        {"slurm.cluster_info", "slurm.job_lookup", "slurm.batch"},
        {"slurm.submission", "slurm.runtime", "slurm.status", "slurm.lab"},
        {"slurm.backend"},
    ),
}
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


def imports(path: Path) -> set[str]:
    """Dotted names that a module imports, wherever the import stands: also inside functions and for type checkers alone."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def graph() -> dict[str, set[str]]:
    """Which module imports which."""
    known = modules()
    return {name: {word for word in imports(path) if word in known and word != name} for name, path in known.items()}


def room_of(module: str) -> str:
    """The room of a module: its folder, or the module itself where it stands beside folders."""
    parts = module.split(".")
    return ".".join(parts[:2])


def floor_of(module: str) -> int | None:
    """How high a module's room stands in its top folder; None for one that no table has."""
    for number, rooms in enumerate(ROOMS.get(module.partition(".")[0], ())):
        if room_of(module) in rooms:
            return number
    return None


def test_imports_run_downward_and_siblings_never_meet() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, path in modules().items()
        for other in {word.partition(".")[0] for word in imports(path)} & set(FLOORS)
        if other != (mine := name.partition(".")[0]) and FLOORS[other] >= FLOORS[mine]
    ]
    assert wrong == []


def test_the_rooms_of_a_folder_stand_above_each_other() -> None:
    wrong = []
    for name, others in graph().items():
        for other in others:
            mine, its = floor_of(name), floor_of(other)
            same_folder = name.partition(".")[0] == other.partition(".")[0]
            if same_folder and None not in (mine, its) and room_of(name) != room_of(other) and not (its < mine):  # type: ignore[operator]
                wrong.append(f"{name} imports {other}")
    assert wrong == []


def test_every_room_has_a_floor() -> None:
    missing = {room_of(name) for name in modules() if name.partition(".")[0] in ROOMS and "." in name and floor_of(name) is None}
    assert sorted(missing) == []


def test_no_circles_of_modules_or_of_rooms() -> None:
    found = graph()
    list(TopologicalSorter(found).static_order())  # raises CycleError with the cycle
    rooms: dict[str, set[str]] = {}
    for name, others in found.items():
        rooms.setdefault(room_of(name), set()).update(room for room in map(room_of, others) if room != room_of(name))
    list(TopologicalSorter(rooms).static_order())


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

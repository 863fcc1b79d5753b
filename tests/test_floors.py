"""The architecture, enforced: imports run downward, without cycles, and the command stays light."""

import ast
import os
import resource
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {"cluster": 0, "slurm": 1, "k8s": 1, "datapipe": 1, "sharding": 1, "jobs": 2}
# the rooms of a folder, the lowest first: each may import those below it, and none beside it
ROOMS: dict[str, tuple[set[str], ...]] = {
    "cluster": (
        {
            "cluster.errors",
            "cluster.installed",
            "cluster.local_access",
            "cluster.page",
            "cluster.section",
            "cluster.spec",
            "cluster.text",
            "cluster.yaml_loader",
        },
        {"cluster.input_paths", "cluster.secrets"},
        {"cluster.config", "cluster.data_mounts", "cluster.fresh_reads"},
        {"cluster.config_reader", "cluster.gpus", "cluster.storage"},
        {"cluster.run"},
        {"cluster.process", "cluster.hub", "cluster.membership"},
        {"cluster.memory", "cluster.packages", "cluster.supervise"},
        {"cluster.engines"},
        {"cluster.agent", "cluster.backends"},
    ),
    "jobs": (
        {"jobs.registry", "jobs.configs"},
        {"jobs.results"},
        {"jobs.runs"},
        {"jobs.training", "jobs.orchestration"},
        {"jobs.inference"},
        {"jobs.evaluation"},
        {"jobs.models"},
        {"jobs.serving", "jobs.preprocess"},
        {"jobs.cli"},
    ),
    "jobs.runs": (
        {"jobs.runs.show"},
        {"jobs.runs.submit"},
        {"jobs.runs.models"},
        {"jobs.runs.notify"},
        {"jobs.runs.inspect", "jobs.runs.mirror", "jobs.runs.move", "jobs.runs.program", "jobs.runs.space", "jobs.runs.ui"},
    ),
    "jobs.training": (
        {"jobs.training.loop"},
        {"jobs.training.pruning", "jobs.training.rollouts"},
        {"jobs.training.pretrain", "jobs.training.finetune", "jobs.training.align", "jobs.training.distill"},
    ),
    "jobs.training.loop": (
        {
            "jobs.training.loop.attention",
            "jobs.training.loop.batch",
            "jobs.training.loop.chat_data",
            "jobs.training.loop.devices",
            "jobs.training.loop.documents",
            "jobs.training.loop.gradient_sums",
            "jobs.training.loop.token_data",
        },
        {"jobs.training.loop.losses", "jobs.training.loop.tail"},
        {"jobs.training.loop.head"},
        {"jobs.training.loop.objective"},
        {
            "jobs.training.loop.integrity_keys",
            "jobs.training.loop.model_keys",
            "jobs.training.loop.optim_keys",
            "jobs.training.loop.validation_keys",
        },
        {"jobs.training.loop.config"},
        {"jobs.training.loop.architecture", "jobs.training.loop.update"},
        {"jobs.training.loop.rehearsal"},
        {"jobs.training.loop.groups"},
        {"jobs.training.loop.chunks", "jobs.training.loop.report", "jobs.training.loop.weights"},
        {"jobs.training.loop.anomalies", "jobs.training.loop.model", "jobs.training.loop.source"},
        {"jobs.training.loop.forecast", "jobs.training.loop.validation"},
        {"jobs.training.loop.integrity", "jobs.training.loop.validator", "jobs.training.loop.view"},
        {"jobs.training.loop.state_store"},
        {"jobs.training.loop.trainer"},
        {"jobs.training.loop.recipe"},
    ),
    "sharding": (
        {
            "sharding.caches",
            "sharding.config",
            "sharding.determinism",
            "sharding.divided_adapters",
            "sharding.exchange",
            "sharding.host_copy",
            "sharding.placement",
            "sharding.recompute",
            "sharding.store",
            "sharding.ties",
        },
        {"sharding.group", "sharding.sequence_parallel"},
        {"sharding.batch_plan", "sharding.checkpoints", "sharding.fsdp", "sharding.lock_step"},
        {"sharding.float8", "sharding.tensor_parallel"},
        {"sharding.parallelize"},
    ),
    "datapipe": (
        {"datapipe.manifest", "datapipe.text"},
        {"datapipe.shard_table"},
        {"datapipe.inputs"},
        {"datapipe.filters"},
        {"datapipe.dedup"},
        {"datapipe.report"},
        {"datapipe.tokens"},
        {"datapipe.passes", "datapipe.loader"},
        {"datapipe.execution", "datapipe.chat"},
    ),
    "k8s": (
        {"k8s.names", "k8s.image"},
        {"k8s.profile", "k8s.guarded"},
        {"k8s.kubectl"},
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
        {"slurm.submission", "slurm.runtime", "slurm.status", "slurm.lab", "slurm.ssh"},
        {"slurm.backend"},
    ),
}
HEAVY = ("torch", "ray", "transformers", "submitit")
HELP_TIMES_LIBRARIES = 2  # measured: 1.3 to 1.5


@cache
def modules() -> dict[str, Path]:
    """Every module of the program by its dotted name."""
    results = {}
    for folder in FLOORS:
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            results[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return results


@cache
def imports(path: Path) -> set[str]:
    """Return the names that a module imports anywhere, also inside functions and for type checkers; ours without `ropewalk.`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.removeprefix("ropewalk.") for name in names}


@cache
def graph() -> dict[str, set[str]]:
    """Imports of each module."""
    all_modules = modules()
    return {name: {word for word in imports(path) if word in all_modules and word != name} for name, path in all_modules.items()}


def room_of(module: str, folder: str) -> str:
    """Return the room of a module in a folder: a sub-folder, or the module itself if it stands in the folder."""
    return ".".join(module.split(".")[: folder.count(".") + 2])


def floor_of(module: str, folder: str) -> int | None:
    """Return the floor of a module's room, or None if the folder's table does not have it."""
    room = room_of(module, folder)
    return next((number for number, rooms in enumerate(ROOMS[folder]) if room in rooms), None)


def inside(folder: str) -> dict[str, set[str]]:
    """Return the modules of a folder with the modules of it that each imports."""
    start = f"{folder}."
    return {
        name: {other for other in others if other.startswith(start)} for name, others in graph().items() if name.startswith(start)
    }


def test_imports_run_downward_and_siblings_never_meet() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, path in modules().items()
        for other in {word.partition(".")[0] for word in imports(path)} & set(FLOORS)
        if other != (mine := name.partition(".")[0]) and FLOORS[other] >= FLOORS[mine]
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", sorted(ROOMS))
def test_the_rooms_of_a_folder_stand_above_each_other(folder: str) -> None:
    wrong = []
    for name, others in inside(folder).items():
        for other in others:
            mine, its = floor_of(name, folder), floor_of(other, folder)
            if None not in (mine, its) and room_of(name, folder) != room_of(other, folder) and not (its < mine):  # type: ignore[operator]
                wrong.append(f"{name} imports {other}")
    assert wrong == []


@pytest.mark.parametrize("folder", sorted(ROOMS))
def test_every_room_has_a_floor(folder: str) -> None:
    assert sorted({room_of(name, folder) for name in inside(folder) if floor_of(name, folder) is None}) == []


def test_no_circles_of_modules() -> None:
    list(TopologicalSorter(graph()).static_order())  # raises CycleError with the cycle


def folder_graph(folder: str, imports_of: dict[str, set[str]]) -> dict[str, set[str]]:
    """Imports between the files and sub-folders of a folder, at any depth below it."""
    depth = folder.count(".") + 1
    nodes: dict[str, set[str]] = {}
    for name, others in imports_of.items():
        if name.startswith(f"{folder}."):
            node = name.split(".")[depth]
            imported = {other.split(".")[depth] for other in others if other.startswith(f"{folder}.")}
            nodes.setdefault(node, set()).update(imported - {node})
    return nodes


def test_no_circles_among_the_files_and_sub_folders_of_any_folder() -> None:
    imports_of = graph()
    circles = {}
    for folder in sorted({name.rpartition(".")[0] for name in imports_of if "." in name}):
        try:
            TopologicalSorter(folder_graph(folder, imports_of)).prepare()
        except CycleError as error:
            circles[folder] = " → ".join(error.args[1])
    assert circles == {}


def test_a_circle_of_folders_is_reported_though_no_module_takes_part_in_one() -> None:
    imports_of = {"jobs.x.config": {"jobs.x.parts.first"}, "jobs.x.parts.first": set(), "jobs.x.parts.second": {"jobs.x.config"}}
    TopologicalSorter(imports_of).prepare()
    with pytest.raises(CycleError, match="cycle"):
        TopologicalSorter(folder_graph("jobs.x", imports_of)).prepare()


def test_a_cycle_would_be_found() -> None:
    with pytest.raises(ValueError, match="cycle"):
        list(TopologicalSorter({"a": {"b"}, "b": {"a"}}).static_order())


def test_nothing_is_imported_from_the_tests() -> None:
    assert [name for name, path in modules().items() if any(w.partition(".")[0] == "tests" for w in imports(path))] == []


COMMANDS = [
    *(["--help"], ["ps"], ["ps", "--all", "--json"], ["logs", "latest"], ["run", "pretrain", "--help"]),
    ["submit", "pretrain", "data=data", "steps=1", "seq_len=8", "--dry-run"],
    ["submit", "preprocess", "input=[a.jsonl]", "output=out", "tokenizer={train: 300}", "--dry-run"],
]


def test_the_command_imports_nothing_heavy(tmp_path: Path) -> None:
    from ropewalk.cluster.run.directory import RunDir
    from tests.fakes.token_files import write_dataset

    write_dataset(tmp_path / "data", [100])
    (tmp_path / "a.jsonl").write_text('{"id": "1", "text": "one"}\n')
    run = RunDir.create("x", {"job": "pretrain", "cluster": "local", "config": {}, "resources": {"nodes": 1}}, tmp_path / "runs")
    run.begin_attempt()
    code = f"""
import sys
from ropewalk.jobs.cli import main as cli
from ropewalk.jobs.training.loop.forecast import size
size.LIMIT_SECONDS = 0.0  # a dry run need not wait for the process that imports torch to measure a model
for command in {COMMANDS}:
    sys.argv[1:] = command
    try:
        cli.main()
    except SystemExit as leave:
        print("ENDED", leave.code or 0, [name for name in {HEAVY} if name in sys.modules], *command[:2], file=sys.stderr)
"""
    places = {"cwd": tmp_path, "env": {**os.environ, "ROPEWALK_RUNS": str(tmp_path / "runs")}}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, **places)
    ended = [line for line in done.stderr.splitlines() if line.startswith("ENDED")]
    assert ended == [f"ENDED 0 [] {' '.join(command[:2])}" for command in COMMANDS], done.stderr


def test_help_answers_at_once() -> None:
    """CPU time against that of the libraries which print it, taken in turns: a busy machine slows both."""

    def cpu_seconds(*arguments: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    turns = [
        (cpu_seconds("-m", "ropewalk.jobs.cli", "--help"), cpu_seconds("-c", "import typer, typer.rich_utils")) for _ in range(3)
    ]
    assert min(helped for helped, _ in turns) < HELP_TIMES_LIBRARIES * min(libraries for _, libraries in turns), turns

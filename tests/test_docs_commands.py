"""Commands of README and docs, typed in order in a directory that holds the files which the pages define.

Every line of shell is typed as it stands, with three exceptions: a command for a cluster is dry-run, `SMALLER` has keys that make
a job end within seconds, and `ELSEWHERE` names the test that runs a command.
"""

import io
import json
import os
import re
import shlex
import sys
import sysconfig
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import zstandard

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.names import ATTEMPT_FILES, RUN_FILES
from ropewalk.jobs.registry import JOBS
from ropewalk.jobs.results.metric_names import find_metric
from ropewalk.jobs.results.metrics import OWN_KEYS
from ropewalk.jobs.runs.show.view import view_of
from tests.datapipe.chat.tokenizers import WORDS
from tests.documents import PAGES, ROOT, commands, files, mentions
from tests.fakes.token_files import write_dataset
from tests.jobs.corpus import make_dataset
from tests.jobs.evaluation.audit.tiny import PAIRS
from tests.jobs.shell import Shell
from tests.jobs.training.align.pairs import pairs
from tests.jobs.training.finetune.chats import chats, make_base, write_lines
from tests.patience import Patience, until

FIRST = ("README.md", "docs/guides/first-run.md", "docs/guides/own-program.md")
ONE_BATCH = "batch.global_batch=4 batch.micro_batch=2"
TINY = f"model.preset=tiny seq_len=64 steps=3 {ONE_BATCH}"
SHORT_CHATS = f"steps=3 seq_len=96 {ONE_BATCH}"
TINY_BASE = " ".join(f"base.{key}" for key in TINY.split())
SMALLER = {
    "ropewalk run preprocess -c preprocess.yaml": "tokenizer.train=512",
    "ropewalk run pretrain -c pretrain.yaml optim.lr=1e-3": TINY,
    "ropewalk run evaluate model=RUN data=data": "max_sequences=8",
    "ropewalk run command resources.nodes=2 resources.gpus=8 -- python train.py --lr 1e-3": "resources.gpus=0",
    "ropewalk run finetune -c finetune.yaml": SHORT_CHATS,
    "ropewalk run align -c align.yaml": SHORT_CHATS,
    "ropewalk run sweep -c sweep.yaml": f"trials=3 scheduler=fifo {TINY_BASE}",
    "ropewalk run sweep -c sweep.yaml 'space.optim.lr.choice=[1e-4, 3e-4]' --dry-run": f"scheduler=fifo {TINY_BASE}",
    "ropewalk run distill -c distill.yaml": f"seq_len=64 steps=3 {ONE_BATCH} baseline.seeds=2",
    "ropewalk run compress -c compress.yaml": "seq_len=64 max_sequences=4 calibration.sequences=4 timing=null",
}
ELSEWHERE = {
    "make quickstart": "test_quickstart_shows_the_whole_spine",
    "git clone URL ropewalk && cd ropewalk": "test_the_wheel_holds_the_program_and_its_files",
    "make .venv/.train-ready": "test_it_runs_from_another_directory",
    "source .venv/bin/activate": "test_it_is_the_wheel_that_runs",
    "ropewalk resume RUN": "test_a_run_outlives_its_terminal_and_goes_on_where_it_was",
    "kubectl apply -n team -f k8s/manifests/rbac.yaml -f k8s/manifests/network-policy.yaml": "test_a_dead_node_with_a_spare",
    "kubectl apply -f k8s/manifests/admission-policy.yaml": "test_a_pod_changes_its_own_run_and_no_other",
    "k8s/image/build-image.sh --lock": "test_the_file_pins_everything_and_a_changed_package_is_refused",
    "k8s/image/build-image.sh REGISTRY/ropewalk:1 --push": "test_every_package_of_the_image_is_installed_by_hash",
    "ropewalk fetch -c finetune.yaml": "test_the_job_file_of_the_documents_is_fetched",
    "ropewalk review SERVE-RUN": "test_the_command_serves_until_it_is_asked_to_end_and_writes_the_files",
    "ropewalk submit refresh -c refresh.yaml": "test_what_people_correct_is_learnt_and_served",
    "ropewalk drift SERVE-RUN@7d DATA": "test_the_command_tells_what_differs_and_writes_a_page",
    "ropewalk forget SERVE-RUN --client NAME": "test_the_command_names_the_data_and_the_models_that_learnt_from_it",
    "ropewalk sync --follow &": "test_exactly_one_run_of_each_submission_starts",
    "ropewalk trace ANSWER-ID": "test_an_answer_is_traced_to_its_data",
}
WALKS = {
    "first": FIRST,
    "assistant": ("docs/guides/finetune.md", "docs/guides/evaluate.md", "docs/guides/serve.md"),
    "hub": ("docs/guides/models-and-data.md",),
    "sweep": ("docs/guides/sweeps.md",),
    "compress": ("docs/guides/compress.md",),
}
CLUSTERS = ("docs/guides/slurm.md", "docs/guides/kubernetes.md", "docs/guides/moving.md")  # nothing there is for this machine
CORPUS_FILES = 60


def for_a_cluster(line: str) -> bool:
    return " --on " in line


DRY_RUN = sorted(
    {
        (page, line)
        for page, line in (*commands(), *mentions())
        if for_a_cluster(line) and "CLUSTER" not in line and not line.startswith(("ropewalk dev", "ropewalk move"))
    }
)


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, warm: None) -> Shell:
    """A shell in an empty directory, with the clusters of README, of which none answers."""
    home, programs = tmp_path / "home", tmp_path / "bin"
    for folder in (home, programs):
        folder.mkdir()
    for name in ("sbatch", "scontrol", "sinfo", "squeue", "sacctmgr"):
        (programs / name).write_text("#!/bin/sh\necho no controller >&2; exit 1\n")
        (programs / name).chmod(0o755)
    (tmp_path / "clusters.yaml").write_text(files("README.md")["clusters.yaml"])
    variables = {"ROPEWALK_RUNS": home / "runs", "ROPEWALK_CLUSTERS": tmp_path / "clusters.yaml", "KUBECONFIG": tmp_path / "none"}
    variables |= {"PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for name, value in {**variables, "COLUMNS": 200, "WANDB_MODE": "disabled", "OMP_NUM_THREADS": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(home)
    return Shell(capsys, monkeypatch, home)


def test_every_line_of_shell_is_typed_dry_run_or_named() -> None:
    lines = commands()
    assert {page for page, _ in lines} == {*CLUSTERS, *(page for pages in WALKS.values() for page in pages)}
    here = [line for page, line in lines if page in CLUSTERS and not for_a_cluster(line)]
    assert sorted(set(here) - set(ELSEWHERE)) == [], "pages on clusters are only dry-run"
    assert sorted({*SMALLER, *ELSEWHERE} - {line for _, line in lines}) == []
    tests = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert sorted({*ELSEWHERE.values()} - tests) == []


def test_no_code_is_in_another_language() -> None:
    """Blocks of YAML, Python and shell are tested; text draws, and the table of contents is Sphinx's."""
    languages = {match for page in PAGES for match in re.findall(r"^```(\S+)$", (ROOT / page).read_text(), re.MULTILINE)}
    assert languages <= {"sh", "yaml", "python", "text", "{toctree}", "{include}"}


@pytest.mark.parametrize(("page", "line"), DRY_RUN)
def test_a_command_for_a_cluster_is_dry_run(shell: Shell, page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (shell.home / "without").mkdir()
    (shell.home / "without/torch.py").write_text("raise ImportError('test_plan.py measures models')\n")
    monkeypatch.setenv("PYTHONPATH", str(shell.home / "without"))  # of the processes that each of several clusters has
    for name, text in files("docs/guides/first-run.md", "docs/guides/own-program.md", page).items():
        (shell.home / name).write_text(text)
    write_dataset(shell.home / "data", [50_000], [5000])
    arguments = shlex.split(line)[1:]
    if arguments[0] == "doctor":
        assert "packages" in shell(*arguments, expect=1), "no cluster is here, and the command says so"
        return
    run = RunDir.create("pretrain", {"job": "pretrain", "config": {}}, shell.home / "runs").id
    program = arguments.index("--") if "--" in arguments else len(arguments)
    before = [run if argument == "RUN" else argument.replace("=RUN", f"={run}") for argument in arguments[:program]]
    shell(*dict.fromkeys([*before, "--dry-run"]), *arguments[program:])
    assert shell.out
    assert [each.id for each in RunDir.all(shell.home / "runs")] == [run]


class Walk:
    """Types the commands of pages in one directory."""

    def __init__(self, shell: Shell, monkeypatch: pytest.MonkeyPatch, placeholders: dict[str, str]) -> None:
        """`placeholders`: the job whose newest run a word of the pages stands for."""
        self.shell, self._patch, self._placeholders = shell, monkeypatch, placeholders
        self._typed: set[tuple[str, ...]] = set()

    def follow(self, *pages: str) -> None:
        """Write the files of each page and type its commands; the same command with the same file is typed once."""
        for page in pages:
            for _, line in commands(page):
                key = (line, *(text for name, text in files(page).items() if name in line))
                if line not in ELSEWHERE and not for_a_cluster(line) and key not in self._typed:
                    self._typed.add(key)
                    self._type(page, line)

    def _type(self, page: str, line: str) -> None:
        for name, text in files(page).items():
            (self.shell.home / name).write_text(self._with_runs(text))
        if "SERVE-RUN" in line:
            run = self._newest("serve")
            assert run is not None
            until(lambda: view_of(run).endpoint() is not None, Patience.START)
        self._patch.setattr("sys.stdin", io.StringIO("the rope\n\n"))  # for chat
        arguments = shlex.split(self._with_runs(line))[1:]
        program = arguments.index("--") if "--" in arguments else len(arguments)
        self.shell(*arguments[:program], *shlex.split(SMALLER.get(line, "")), *arguments[program:])

    def _newest(self, job: str) -> RunDir | None:
        return next((run for run in reversed(RunDir.all(self.shell.home / "runs")) if run.record["job"] == job), None)

    def _with_runs(self, text: str) -> str:
        for word, job in self._placeholders.items():
            if run := self._newest(job):
                text = re.sub(rf"(?<![\w-]){word}(?![\w-])", run.id, text)
        return text


def check_files(runs: Path) -> None:
    """The directories of runs hold what the reference lists, and nothing else; so do their metrics."""
    for run in RunDir.all(runs):
        patterns = [*RUN_FILES, *JOBS[run.record["job"]].files]
        names = {path.name for path in run.path.iterdir()}
        assert [name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)] == [], run.id
        for attempt in run.attempts():
            assert {path.name for path in run.attempt_dir(attempt).iterdir()} <= {*ATTEMPT_FILES, "result.pkl"}, run.id
        names = {name for line in run.read_metrics() for name in line} - OWN_KEYS
        assert sorted(name for name in names if find_metric(name) is None) == []


def write_documents(folder: Path) -> None:
    folder.mkdir()
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:CORPUS_FILES]
    write_packed(folder / "part.jsonl.zst", [{"id": path.name, "text": path.read_text(errors="replace")} for path in sources])


def write_packed(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_bytes(zstandard.compress("\n".join(map(json.dumps, records)).encode()))


def check_program(program: RunDir) -> None:
    assert program.read_metrics()[-1]["step"] == 40
    assert sorted(path.name for path in program.checkpoints.glob("step-*")) == ["step-00000030", "step-00000040"]


def test_a_program_of_ones_own(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    Walk(shell, monkeypatch, {}).follow("docs/guides/own-program.md")
    [program] = RunDir.all(shell.home / "runs")
    check_files(shell.home / "runs")
    check_program(program)


@pytest.mark.soak("a minute; make test runs the same jobs by quickstart, and the page on programs of one's own")
def test_the_first_run(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    write_documents(shell.home / "docs")
    Walk(shell, monkeypatch, {"RUN": "pretrain"}).follow(*WALKS["first"])
    jobs = [run.record["job"] for run in RunDir.all(shell.home / "runs")]
    assert jobs == ["preprocess", "pretrain", "evaluate", "command"]
    assert (shell.home / "model/config.json").exists()
    check_files(shell.home / "runs")
    check_program(RunDir.all(shell.home / "runs")[-1])


@pytest.mark.soak("eight runs and a server; test_finetune.py, test_align.py, test_gated.py and test_serving.py run each job")
def test_from_a_base_model_to_an_endpoint(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    make_base(shell.home / "HuggingFaceTB/SmolLM2-135M", text=f"{WORDS} says lane rope", max_position_embeddings=1024)
    write_packed(shell.home / "chats.jsonl.zst", chats(60))
    write_packed(shell.home / "pairs.jsonl.zst", pairs(60))
    questions = [{"question": f"rope {number}?", "choices": ["yes", "no"], "answer": 1} for number in range(40)]
    write_lines(shell.home / "quiz.jsonl", questions)
    write_lines(shell.home / "stereotypes.jsonl", PAIRS)
    walk = Walk(shell, monkeypatch, {"FINETUNE-RUN": "finetune", "OTHER-RUN": "finetune", "RUN": "align", "SERVE-RUN": "serve"})
    (shell.home / "tokens.txt").write_text("ann: secret\n")
    (shell.home / "tokens.txt").chmod(0o600)
    try:
        walk.follow(*WALKS["assistant"])
    finally:
        shell(
            "cancel",
            *(run.id for run in RunDir.all(shell.home / "runs") if run.record["job"] == "serve" and not run.last_outcome()),
        )
    jobs = [run.record["job"] for run in RunDir.all(shell.home / "runs")]
    assert jobs == ["finetune", "align", "evaluate", "evaluate", "audit", "serve", "serve"]
    check_files(shell.home / "runs")


@pytest.mark.soak("13 runs; test_sweep.py and test_confirm.py protect the same in make test")
def test_a_sweep(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    (shell.home / "pretrain.yaml").write_text(files("docs/guides/first-run.md")["pretrain.yaml"])
    make_dataset(shell.home / "data")
    Walk(shell, monkeypatch, {"SWEEP": "sweep"}).follow(*WALKS["sweep"])
    assert (shell.home / "best.yaml").exists()
    check_files(shell.home / "runs")


@pytest.mark.soak("eight runs; test_distill.py and test_compress.py run each job")
def test_smaller_models(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(shell.home / "data")
    shell("run", "pretrain", "data=data", *TINY.split())
    Walk(shell, monkeypatch, {"RUN": "pretrain"}).follow(*WALKS["compress"])
    assert (shell.home / "model.gguf").stat().st_size > 10_000
    check_files(shell.home / "runs")

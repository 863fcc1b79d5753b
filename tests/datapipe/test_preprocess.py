"""The `preprocess` job: the same bytes from any number of actors, stopped or not."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ropewalk import jobs
from ropewalk.cluster.config_reader import load_config, read_job_file
from ropewalk.cluster.errors import ConfigError, DataError, StaleAttemptError, StopRequested
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.datapipe.passes.worker import Task
from ropewalk.jobs.preprocess.config import PreprocessConfig
from ropewalk.jobs.preprocess.job import main
from tests.fakes.documents import configure, contents, make, some_documents, write_lines

KEYS: dict[str, Any] = {"unit_mib": 0.02, "shard_mib": 0.05}


def context_of(config: PreprocessConfig, root: Path, cpus: int = 2, engine: str = "ray") -> JobContext:
    record = {"config": config.model_dump(mode="json"), "resources": {"cpus": cpus}, "engine": engine}
    run = RunDir.create("preprocess", record, root=root)
    return JobContext(run=run, attempt=run.begin_attempt(), stop_flag=run.path / "stop")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_lines(tmp_path / "in/a.jsonl", [*some_documents(400), b"not json"])
    write_lines(tmp_path / "in/b.jsonl", some_documents(200, seed=1))
    return tmp_path / "in"


def touch_when(condition: Callable[[], bool], flag: Path) -> None:
    while not condition():
        time.sleep(0.01)
    flag.touch()


@pytest.mark.soak(
    "an interpreter of its own; test_s3_holds_the_same_data_set_as_a_disk makes a complete one again,"
    " test_ray_is_only_started_for_several_nodes says when Ray is"
)
def test_a_complete_data_set_needs_no_actors(tmp_path: Path, source: Path) -> None:
    manifest = make(source, tmp_path / "out", **KEYS)
    script = "import sys\nfrom tests.fakes.drive import drive\nprint(drive(sys.argv[1])['tokens'], 'ray' in sys.modules)"
    run = context_of(configure(source, tmp_path / "out", **KEYS), tmp_path / "runs").run
    done = subprocess.run([sys.executable, "-c", script, run.path], check=True, capture_output=True, text=True)
    assert done.stdout.split() == [str(manifest.totals.tokens), "False"]


def test_the_users_mistakes_are_found_at_submission(tmp_path: Path, source: Path) -> None:
    with pytest.raises(DataError, match="no such file or directory"):
        configure(tmp_path / "nowhere", tmp_path / "out").preflight()
    with pytest.raises(DataError, match="matches no file"):
        configure(source / "*.parquet", tmp_path / "out").preflight()
    with pytest.raises(ConfigError, match=r"tokenizer\.path: .* no such file"):
        configure(source, tmp_path / "out", tokenizer={"path": str(tmp_path / "none")}).preflight()
    with pytest.raises(ConfigError, match="input: "):
        load_config(PreprocessConfig, {"input": [], "output": "x", "tokenizer": {"train": 400}})
    with pytest.raises(ConfigError, match="did you mean 'tokenizer'"):
        load_config(PreprocessConfig, {"input": "x", "output": "x", "tokeniser": {"train": 400}})


def test_the_example_is_a_complete_run() -> None:
    example = Path(jobs.__file__).parent / "configs/preprocess.yaml"
    assert load_config(PreprocessConfig, read_job_file(example, "preprocess")).model_dump()["tokenizer"]["train"] == 8192


def test_the_configuration_is_read_without_heavy_imports() -> None:
    heavy = ("ray", "torch", "transformers", "numba", "pyarrow", "numpy", "tokenizers")
    code = f"import sys, ropewalk.jobs.preprocess.job; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.soak(
    "two interpreters; test_a_full_disk_ends_the_attempt_on_all_ranks_and_may_be_retried has a full disk,"
    " test_work_that_is_committed_is_not_done_again what goes on"
)
@pytest.mark.skipif(sys.platform != "linux", reason="needs mount namespaces")
def test_a_full_disk_is_named_and_nothing_is_lost(tmp_path: Path, source: Path) -> None:
    """The output is a file system of 200 KiB, in a mount namespace of its own; then it grows."""
    (tmp_path / "disk").mkdir()
    config = configure(source, tmp_path / "disk/out", **KEYS)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    make(source, tmp_path / "serial", **KEYS)
    script = tmp_path / "script.sh"
    step = f"{sys.executable} -m tests.fakes.drive {tmp_path}/config.json"
    script.write_text(
        f"mount -t tmpfs -o size=200k none {tmp_path}/disk || exit 77\n{step}; echo first $?\n"
        f"mount -o remount,size=50m {tmp_path}/disk\n{step}; echo second $?\ncp -a {tmp_path}/disk/out {tmp_path}/copy\n"
    )
    done = subprocess.run(
        ["unshare", "-rm", "sh", script], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}, check=False
    )
    if "first" not in done.stdout:
        pytest.skip(f"mount namespaces are not allowed here: {done.stderr.strip()}")
    assert "first 1\n" in done.stdout
    assert f"{tmp_path}/disk/out" in done.stdout
    assert "no space left on device; free some space and run again" in done.stdout
    assert "second 0\n" in done.stdout
    assert contents(tmp_path / "copy") == contents(tmp_path / "serial")


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """One Ray, of two CPUs, for the tests below; it ends with the module."""
    import ray

    from ropewalk.cluster.engines.ray_start import start_local

    start_local(2)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    "actors",
    [
        pytest.param(1, marks=pytest.mark.soak("make test runs two actors")),
        2,
        pytest.param(4, marks=pytest.mark.soak("make test runs two actors")),
    ],
)
def test_any_number_of_actors_gives_the_same_bytes(
    tmp_path: Path, source: Path, actors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    manifest = make(source, tmp_path / "serial", **KEYS)
    config = configure(source, tmp_path / "out", actors=actors, **KEYS)
    context = context_of(config, tmp_path / "runs")
    results = main(context)
    assert contents(tmp_path / "out") == contents(tmp_path / "serial")
    assert results == {
        "documents": manifest.totals.documents,
        "tokens": manifest.totals.tokens,
        "bytes": manifest.totals.bytes,
        "validation_documents": manifest.totals.validation.documents,
        "vocabulary": manifest.tokenizer.vocabulary,
        "shards": len(manifest.shards),
        "rejected": manifest.rejected.total,
        "reasons": manifest.rejected.reasons,
        "output": str(tmp_path / "out"),
    }
    progress = read_json(context.run.progress)
    assert progress is not None
    assert progress["done"] == progress["total"] == manifest.totals.documents
    assert set(progress["rates"]) == {"documents/s", "MB/s"}


@pytest.mark.soak("make test stops processes and arrays, in test_process_pool.py and test_fanout.py")
@pytest.mark.usefixtures("local_ray")
def test_a_stop_keeps_what_is_committed(tmp_path: Path, source: Path) -> None:
    make(source, tmp_path / "serial", **KEYS)
    config = configure(source, tmp_path / "out", **KEYS)
    stopped = context_of(config, tmp_path / "runs")
    flag = stopped.stop_flag
    assert flag is not None
    committed = tmp_path / "out/.work/units"
    watch = threading.Thread(target=touch_when, args=(lambda: len(list(committed.glob("*.json"))) >= 2, flag))
    watch.start()
    with pytest.raises(StopRequested):
        main(stopped)
    watch.join()
    assert not (tmp_path / "out/manifest.json").exists()
    assert len(list(committed.glob("*.json"))) >= 2
    make(source, tmp_path / "out", **KEYS)
    assert contents(tmp_path / "out") == contents(tmp_path / "serial")


@pytest.mark.soak("make test has one on processes in test_process_pool.py")
@pytest.mark.usefixtures("local_ray")
def test_an_orphan_of_an_older_attempt_does_not_finish(tmp_path: Path, source: Path) -> None:
    orphan = context_of(configure(source, tmp_path / "out", **KEYS), tmp_path / "runs")
    orphan.run.begin_attempt()
    with pytest.raises(StaleAttemptError):
        main(orphan)
    assert not (tmp_path / "out/manifest.json").exists()


@pytest.mark.soak(
    "four imports in actors; test_any_number_of_actors_gives_the_same_bytes has actors, and"
    " test_a_task_that_kills_three_elements_is_named and test_process_pool.py replace what dies"
)
@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_an_actor_that_dies_is_replaced_but_not_for_ever(tmp_path: Path) -> None:
    from ropewalk.datapipe.execution.ray_actors import ActorPool

    with ActorPool(str(tmp_path), str(tmp_path / ".work"), 1, lambda: False) as pool:
        pool.kind = _dying(pool.kind)
        poison = Task(method="die", label="s3://bucket/poison.jsonl", arguments=())
        with pytest.raises(DataError, match=r"s3://bucket/poison\.jsonl: killed 3 actors"):
            list(pool.run_tasks([poison]))


def _dying(kind: Any) -> Any:
    import ray

    del kind

    class Dying:
        def __init__(self, *_: str) -> None:
            pass

        def ready(self) -> int:
            return os.getpid()

        def do(self, _: Task) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    return ray.remote(Dying).options(num_cpus=0.1)

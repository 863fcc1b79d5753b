"""Load tasks in lm-eval's format from files and by name, and validate them before anything is computed."""

import contextlib
import difflib
import logging
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import ConfigError, DataError
from ropewalk.jobs.evaluation.tasks.config import BUILT_IN, TaskKeys, built_in_tasks, is_file

log = logging.getLogger(__name__)

_COLUMN = re.compile(r"[A-Za-z_]\w*")  # read by lm-eval as a column name, or silently as a text if there is no such column


def load_tasks(config: TaskKeys) -> dict[str, Any]:
    """Return the tasks by name as lm-eval objects; few-shot examples are drawn from the seed. Raises ConfigError, DataError."""
    need_lm_eval()
    tasks: dict[str, Any] = {}
    with _scratch_cache():
        for reference in config.tasks:
            for name, task in _load(reference, config).items():
                if name in tasks:
                    raise ConfigError(f"tasks: two tasks have the name {name!r}; rename one (`task:` in its file)")
                tasks[name] = task
    for name, task in tasks.items():
        if config.fewshot is not None:
            task.set_config(key="num_fewshot", value=config.fewshot)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=config.seed)
        _check(name, task, config.limit)
    return tasks


def need_lm_eval() -> None:
    """Raise ConfigError unless lm-eval is installed."""
    try:
        import lm_eval.tasks
    except ImportError as error:
        raise ConfigError(
            f"tasks: lm-eval, which defines them, is not installed ({error}); `pip install 'ropewalk[tasks]'`"
        ) from None
    # its messages about metrics without keys are long and irrelevant
    logging.getLogger(lm_eval.__name__).setLevel(logging.ERROR)


def _load(reference: str, config: TaskKeys) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    if is_file(reference):
        spec, manager, folder = _spec(Path(reference)), TaskManager(include_defaults=False), Path(reference).parent
    elif reference in built_in_tasks():
        spec, folder = _spec(BUILT_IN / f"{reference}.yaml"), BUILT_IN
        spec["dataset_kwargs"] = {"data_files": {"test": config.task_files[reference]}}
        spec["dataset_path"] = _kind(config.task_files[reference])
        manager = TaskManager(include_defaults=False)
    else:
        manager, folder = TaskManager(), Path.cwd()
        if reference not in manager.all_tasks:
            raise ConfigError(_unknown(reference, manager.all_tasks))
        spec = None
    try:
        with contextlib.chdir(folder):  # paths in a task file are relative to it
            loaded: dict[str, Any] = manager.load([spec or reference])["tasks"]
    except Exception as error:  # lm-eval raises exceptions of any type
        raise ConfigError(f"tasks: {reference} cannot be loaded: {_describe(error)}; check the paths of its data") from error
    return loaded


def _spec(path: Path) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        spec: Any = load_yaml(path, resolve_func=True, recursive=True)
    except Exception as error:
        raise ConfigError(f"tasks: {path} cannot be read: {_describe(error)}") from error
    if not isinstance(spec, dict) or "task" not in spec:
        raise ConfigError(f"tasks: {path} is not a task file of lm-eval: it has no key `task` (the task's name)")
    return spec


def _kind(path: str) -> str:
    return "parquet" if path.endswith(".parquet") else "json"


def _unknown(reference: str, theirs: Sequence[str]) -> str:
    built_in = built_in_tasks()
    near = difflib.get_close_matches(reference, [*built_in, *theirs], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"tasks: unknown task {reference!r}{hint}; name a file (FILE.yaml), one of {', '.join(built_in)}, or a task of lm-eval"


def _describe(error: BaseException) -> str:
    message = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


@contextlib.contextmanager
def _scratch_cache() -> Iterator[None]:
    """Keep the cache of `datasets` in a temporary folder; its tables are in memory when the block ends."""
    import datasets

    datasets.disable_progress_bars()
    before, memory_limit = datasets.config.HF_DATASETS_CACHE, datasets.config.IN_MEMORY_MAX_SIZE
    with tempfile.TemporaryDirectory(prefix="ropewalk-tasks-") as folder:
        datasets.config.HF_DATASETS_CACHE, datasets.config.IN_MEMORY_MAX_SIZE = Path(folder), float("inf")
        try:
            yield
        finally:
            datasets.config.HF_DATASETS_CACHE, datasets.config.IN_MEMORY_MAX_SIZE = before, memory_limit


# --- checks that lm-eval does not make


def _check(name: str, task: Any, limit: int | None) -> None:
    """Raise DataError for a task without items, with a missing column, or with an item without an answer."""
    docs = task.eval_docs
    if not len(docs):
        raise DataError(f"task {name}: its data has no items; check dataset_kwargs.data_files and the splits in its file")
    columns = list(docs[0])
    for key in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        template = task.get_config(key)
        if isinstance(template, str) and _COLUMN.fullmatch(template) and template not in columns:
            raise DataError(f"task {name}: {key} names the column {template!r}; the columns of its data are {', '.join(columns)}")
    for number in range(min(len(docs), limit or len(docs))):
        try:
            _check_item(name, task, number, docs[number])
        except DataError:
            raise
        except Exception as error:  # a template that the item cannot fill
            raise DataError(f"task {name}, item {number}: {_describe(error)}; the data has {', '.join(columns)}") from error


def _check_item(name: str, task: Any, number: int, doc: dict[str, Any]) -> None:
    kind = task.OUTPUT_TYPE
    if kind == "loglikelihood_rolling":
        if not str(task.doc_to_target(doc) or ""):
            raise DataError(f"task {name}, item {number}: its text is empty")
        return
    target = task.doc_to_target(doc)
    if target is None or target == "" or (isinstance(target, list) and not target):
        raise DataError(f"task {name}, item {number}: it has no answer (doc_to_target is {target!r}); correct or remove it")
    if kind != "multiple_choice" or task.config.doc_to_choice is None:
        return
    choices = task.doc_to_choice(doc)
    if not choices or any(choice is None or choice == "" for choice in choices):
        raise DataError(f"task {name}, item {number}: its choices are {choices!r}; each must have a text")
    if getattr(task, "multiple_input", 0):  # choices are contexts of one continuation, and the answer is the index of a context
        target = task.doc_to_text(doc)
    for answer in target if isinstance(target, list) else [target]:
        if not (answer in choices if isinstance(answer, str) else isinstance(answer, int) and 0 <= answer < len(choices)):
            raise DataError(
                f"task {name}, item {number}: its answer {answer!r} is neither one of its choices {choices!r} nor an index of one"
            )

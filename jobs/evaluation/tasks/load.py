"""Tasks as lm-eval defines them, loaded from files and names, and checked before anything is computed."""

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

_COLUMN = re.compile(r"[A-Za-z_]\w*")  # what lm-eval takes for a column, or else in silence for a text


def load_tasks(config: TaskKeys) -> dict[str, Any]:
    """The tasks by name, as lm-eval's objects; few-shot examples are drawn from the seed. Raises ConfigError, DataError."""
    need_lm_eval()
    found: dict[str, Any] = {}
    with _scratch_cache():
        for word in config.tasks:
            for name, task in _load(word, config).items():
                if name in found:
                    raise ConfigError(f"tasks: two tasks are called {name!r}; give each a name of its own (`task:` in its file)")
                found[name] = task
    for name, task in found.items():
        if config.fewshot is not None:
            task.set_config(key="num_fewshot", value=config.fewshot)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=config.seed)
        _check(name, task, config.limit)
    return found


def need_lm_eval() -> None:
    """Raise ConfigError where lm-eval is not installed."""
    try:
        import lm_eval.tasks
    except ImportError as error:
        raise ConfigError(
            f"tasks: they are defined by lm-eval, which is not installed here ({error}); `pip install 'ropewalk[tasks]'`"
        ) from None
    # what it says of metrics without keys is many lines and no news
    logging.getLogger(lm_eval.__name__).setLevel(logging.ERROR)


def _load(word: str, config: TaskKeys) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    if is_file(word):
        spec, manager, folder = _spec(Path(word)), TaskManager(include_defaults=False), Path(word).parent
    elif word in built_in_tasks():
        spec, folder = _spec(BUILT_IN / f"{word}.yaml"), BUILT_IN
        spec["dataset_kwargs"] = {"data_files": {"test": config.task_files[word]}}
        spec["dataset_path"] = _kind(config.task_files[word])
        manager = TaskManager(include_defaults=False)
    else:
        manager, folder = TaskManager(), Path.cwd()
        if word not in manager.all_tasks:
            raise ConfigError(_unknown(word, manager.all_tasks))
        spec = None
    try:
        with contextlib.chdir(folder):  # files in a task's file are relative to it
            loaded: dict[str, Any] = manager.load([spec or word])["tasks"]
    except Exception as error:  # of a package, in as many words as it likes
        raise ConfigError(f"tasks: {word} cannot be loaded: {_words(error)}; is its data where the task says?") from error
    return loaded


def _spec(path: Path) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        spec: Any = load_yaml(path, resolve_func=True, recursive=True)
    except Exception as error:
        raise ConfigError(f"tasks: {path} cannot be read: {_words(error)}") from error
    if not isinstance(spec, dict) or "task" not in spec:
        raise ConfigError(f"tasks: {path} is no task of lm-eval's: it has no key `task` (the task's name)")
    return spec


def _kind(path: str) -> str:
    return "parquet" if path.endswith(".parquet") else "json"


def _unknown(word: str, theirs: Sequence[str]) -> str:
    own = built_in_tasks()
    near = difflib.get_close_matches(word, [*own, *theirs], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"tasks: unknown task {word!r}{hint}; name a file (FILE.yaml), one of {', '.join(own)}, or a task of lm-eval's"


def _words(error: BaseException) -> str:
    said = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


@contextlib.contextmanager
def _scratch_cache() -> Iterator[None]:
    """Let `datasets` keep what it makes of local files in a folder that goes with the block: tables are in memory by then."""
    import datasets

    datasets.disable_progress_bars()
    before, kept = datasets.config.HF_DATASETS_CACHE, datasets.config.IN_MEMORY_MAX_SIZE
    with tempfile.TemporaryDirectory(prefix="ropewalk-tasks-") as folder:
        datasets.config.HF_DATASETS_CACHE, datasets.config.IN_MEMORY_MAX_SIZE = Path(folder), float("inf")
        try:
            yield
        finally:
            datasets.config.HF_DATASETS_CACHE, datasets.config.IN_MEMORY_MAX_SIZE = before, kept


# --- what lm-eval would take in silence


def _check(name: str, task: Any, limit: int | None) -> None:
    """Raise DataError for a task without items, without a column that it names, or with an item that has no answer."""
    docs = task.eval_docs
    if not len(docs):
        raise DataError(f"task {name}: its data has no items; see dataset_kwargs.data_files and the splits in its file")
    columns = list(docs[0])
    for key in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        told = task.get_config(key)
        if isinstance(told, str) and _COLUMN.fullmatch(told) and told not in columns:
            raise DataError(f"task {name}: {key} names the column {told!r}, and the data has {', '.join(columns)}")
    for number in range(min(len(docs), limit or len(docs))):
        try:
            _check_item(name, task, number, docs[number])
        except DataError:
            raise
        except Exception as error:  # a template that does not fit the item
            raise DataError(f"task {name}, item {number}: {_words(error)}; the data has {', '.join(columns)}") from error


def _check_item(name: str, task: Any, number: int, doc: dict[str, Any]) -> None:
    kind = task.OUTPUT_TYPE
    if kind == "loglikelihood_rolling":
        if not str(task.doc_to_target(doc) or ""):
            raise DataError(f"task {name}, item {number}: its text is empty")
        return
    target = task.doc_to_target(doc)
    if target is None or target == "" or (isinstance(target, list) and not target):
        raise DataError(f"task {name}, item {number}: it has no answer (doc_to_target is {target!r}); leave it out, or mend it")
    if kind != "multiple_choice" or task.config.doc_to_choice is None:
        return
    choices = task.doc_to_choice(doc)
    if not choices or any(choice is None or choice == "" for choice in choices):
        raise DataError(f"task {name}, item {number}: its choices are {choices!r}; each must have a text")
    if getattr(task, "multiple_input", 0):  # the choices are texts before one ending, and the answer is a text's number
        target = task.doc_to_text(doc)
    for one in target if isinstance(target, list) else [target]:
        if not (one in choices if isinstance(one, str) else isinstance(one, int) and 0 <= one < len(choices)):
            raise DataError(
                f"task {name}, item {number}: its answer {one!r} is none of its choices {choices!r}, nor a number of one"
            )

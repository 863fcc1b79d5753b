"""A run as Weights & Biases sees it: one W&B run for all attempts, whose history lines are the numbered lines of the feed."""

import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.registry import view_class
from ropewalk.jobs.results.readable import ReadableTable
from ropewalk.jobs.runs.mirror.feed import Kind, Line

log = logging.getLogger(__name__)

TRANSMIT_SECONDS = 1.0
_INTERVAL = "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL"
MOST_ATTEMPTS = 20  # the newest, in the notes
FLUSH_SECONDS = 1  # how often W&B's own file is flushed
# which value of a validation metric is the best
BEST = {
    "loss": "min",
    "bits_per_byte": "min",
    "perplexity": "min",
    "accuracy": "max",
    "reward": "max",
}


class WandbRun:
    """An open W&B run. Offline it writes W&B's own files into the run directory."""

    def __init__(self, run: RunDir, attempt: int, *, offline: bool, beside: bool) -> None:
        # before wandb is imported: it reads the environment once
        os.environ["WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL"] = str(FLUSH_SECONDS)
        os.environ.setdefault("WANDB_SILENT", "true")
        run.wandb.mkdir(exist_ok=True)
        import wandb

        self.run, self.offline = run, offline
        self._wandb = wandb.init(**_arguments(run, attempt, offline=offline, beside=beside))
        self._wandb.define_metric("train/step")
        self._wandb.define_metric("system/time")
        for section in ("train", "evaluation", "events", "layers"):
            self._wandb.define_metric(f"{section}/*", step_metric="train/step")
        self._wandb.define_metric("validation/*", step_metric="train/step", summary="last")
        for name, best in BEST.items():
            self._wandb.define_metric(f"validation/{name}", step_metric="train/step", summary=f"{best},last")
        self._wandb.define_metric("system/*", step_metric="system/time")

    @property
    def url(self) -> str | None:
        """Where a person sees the run; None offline."""
        found = None if self.offline else self._wandb.url
        return str(found) if found else None

    @property
    def lines(self) -> int:
        """How many lines the server had as this W&B run was opened: behind them wandb-core writes those that come.

        Another question would be of another moment: the wandb-core of a mirror that was killed may still have sent some.
        """
        return int(self._wandb.starting_step)

    def send(self, lines: Iterable[Line]) -> None:
        """Hand over lines; their numbers are the steps of W&B's history."""
        for line in lines:
            self._wandb.log(wandb_values(line), step=line.number, commit=True)  # without `commit` it waits for the next line

    def summary(self, values: Mapping[str, Any]) -> None:
        """Set values of the summary."""
        self._wandb.summary.update(dict(values))

    def note(self, text: str) -> None:
        """Set the notes."""
        self._wandb.notes = text

    def file(self, path: Path) -> None:
        """Show a file of the run's wandb/ among W&B's."""
        self._wandb.save(str(path), base_path=str(path.parent), policy="now")

    def alert(self, title: str, text: str, *, serious: bool) -> None:
        """Have W&B tell the owner of the run."""

        self._wandb.alert(title, text, level="ERROR" if serious else "INFO", wait_duration=0)

    def artifact(self, name: str, kind: str, uri: str, metadata: Mapping[str, Any], aliases: list[str], *, used: bool) -> None:
        """Name something that the run reads (`used`) or makes, by reference: nothing is uploaded."""
        import wandb

        made = wandb.Artifact(name, type=kind, metadata=dict(metadata))
        made.add_reference(uri, name="reference", checksum=False)
        if not used:
            self._wandb.log_artifact(made, aliases=aliases)
            return
        with suppress(wandb.errors.Error, ValueError, TypeError):  # offline there is no server to wait for, or nothing is written
            self._wandb.use_artifact(made)

    def table(self, table: ReadableTable) -> None:
        """Show a table, in the place of the one that was shown under its name."""
        import wandb

        made = wandb.Table(columns=table.columns, data=table.rows, allow_mixed_types=True)
        self._wandb.summary[f"tables/{table.name}"] = made  # not in the history: its lines are those of the feed

    def picture(self, path: Path) -> None:
        """Show a picture, in the place of the one that was shown under its name."""
        import wandb

        self._wandb.summary[f"pictures/{path.stem}"] = wandb.Image(str(path), caption=path.stem)

    def upload(self, name: str, kind: str, folder: Path, metadata: Mapping[str, Any], aliases: list[str]) -> None:
        """Upload a folder as an artifact: a copy is made first, so that it may vanish meanwhile. Raises OSError."""
        import wandb

        made = wandb.Artifact(name, type=kind, metadata=dict(metadata))
        made.add_dir(str(folder), policy="mutable")
        self._wandb.log_artifact(made, aliases=aliases)

    def finish(self, exit_code: int, *, preempting: bool) -> None:
        """Close the run. `preempting`: it goes on, and must not look crashed."""
        if preempting:
            self._wandb.mark_preempting()
        self._wandb.finish(exit_code=exit_code)


def wandb_values(line: Line) -> dict[str, Any]:
    """A line as W&B's history has it: steps are metrics too, since W&B's own step cannot go back after a resume."""
    return {**_shown(line), "_timestamp": line.values["time"]}  # when it was, not when it is sent


def _shown(line: Line) -> dict[str, Any]:
    values = line.values
    if line.again:  # the first that was told of a step stands, as W&B itself has it; the place in the history is kept
        return {"events/repeated": 1, "train/step": line.step, "events/time": values["time"]}
    match line.kind:
        case Kind.METRICS:
            return {
                **line.metrics,
                "train/step": line.step,
                "system/time": values.get("time"),
                "attempt": values.get("attempt"),
            }
        case Kind.EVENT:
            return {f"events/{values['event']}": 1, "train/step": line.step, "events/time": values["time"]}
        case Kind.HISTOGRAMS:
            made = {f"layers/{name}": _histogram(counts, values["edges"]) for name, counts in values["counts"].items()}
            return {**made, "train/step": line.step}
    node = values.get("node", 0)
    samples = {f"system/node-{node}/{key}": value for key, value in values.items() if key not in {"time", "node"}}
    return {**samples, "system/time": values["time"]}


def _histogram(counts: list[int], edges: list[float]) -> Any:
    import wandb

    return wandb.Histogram(np_histogram=(counts, edges))


def project_of(run: RunDir) -> tuple[str, str | None]:
    """The W&B project and entity of a run; the entity is None where W&B's own default holds."""
    own = (run.record.get("config") or {}).get("wandb") or {}
    project = own.get("project") or os.environ.get("WANDB_PROJECT") or "ropewalk"
    return str(project), own.get("entity") or os.environ.get("WANDB_ENTITY") or None


def _arguments(run: RunDir, attempt: int, *, offline: bool, beside: bool) -> dict[str, Any]:
    """What `wandb.init` is told of a run: the same W&B run for all its attempts, with its configuration and its code.

    `beside`: this is a machine of the run, whose packages are the run's.
    """
    import wandb

    record, details = run.record, run.attempt_details(attempt)
    config = dict(record.get("config") or {})
    own = config.get("wandb") or {}
    project, entity = project_of(run)
    told = {
        "resources": record.get("resources"),
        "git": record.get("code"),
        "attempt": attempt,
        "handle": details.get("handle"),
        "cluster": record.get("cluster", "local"),
        "directory": run.id,
        "versions": record.get("versions"),
    }
    return {
        "mode": "offline" if offline else "online",
        "dir": str(run.path),
        "id": run.id,
        "name": run.id,
        "project": project,
        "entity": entity,
        "notes": notes(run),
        "group": own.get("group") or view_class(str(record["job"]))(run).wandb_group() or config.get("name") or record["job"],
        "job_type": own.get("job_type") or record["job"],
        "tags": [str(record.get("cluster", "local")), *own.get("tags", ())],
        "resume": "allow",
        "reinit": "create_new",  # a relay has many runs open in one process
        "config": {**config, **told},
        "settings": wandb.Settings(
            **_live(),
            console="off",
            save_code=False,
            quiet=True,
            init_timeout=30,
            x_disable_stats=True,
            x_disable_meta=True,
            x_save_requirements=beside and attempt == 1,  # to read them takes longer than all else
            git_commit=(record.get("code") or {}).get("commit"),
            disable_git=True,  # else that of whatever checkout this process was started in
        ),
    }


def _live() -> dict[str, float]:
    """How often W&B's server is told of new lines, unless the environment says that: by itself wandb-core waits 15 seconds."""
    return {} if _INTERVAL in os.environ else {"x_file_stream_transmit_interval": TRANSMIT_SECONDS}


def notes(run: RunDir) -> str | None:
    """The run's own notes, and how each attempt ended that is over."""
    own = ((run.record.get("config") or {}).get("wandb") or {}).get("notes")
    ends = [(attempt, run.outcome(attempt)) for attempt in run.attempts()]
    told = [f"attempt {attempt}: {end.state.value}, {end.cause}" for attempt, end in ends if end is not None]
    return "\n".join([*([own] if own else []), *told[-MOST_ATTEMPTS:]]) or None

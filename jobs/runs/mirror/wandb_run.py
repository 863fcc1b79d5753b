"""One W&B run for all attempts of a run, whose history lines are the numbered lines of the feed."""

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
MOST_ATTEMPTS = 20  # newest attempts listed in the notes
_NO_SAMPLES = frozenset({"time", "node", "run_seconds", "run_class"})  # keys of a node's sample
FLUSH_SECONDS = 1  # flush interval of W&B's file
# direction of validation metrics
BEST = {
    "loss": "min",
    "bits_per_byte": "min",
    "perplexity": "min",
    "accuracy": "max",
    "reward": "max",
}


class WandbRun:
    """An open W&B run. Offline it writes W&B's files into the run directory."""

    def __init__(self, run: RunDir, attempt: int, *, offline: bool, beside: bool) -> None:
        # before the import of wandb, which reads the environment
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
        self._wandb.define_metric("goodput/*", step_metric="system/time")

    @property
    def url(self) -> str | None:
        """Address of the run's page; None offline."""
        url = None if self.offline else self._wandb.url
        return str(url) if url else None

    @property
    def lines(self) -> int:
        """Number of lines that the server had when this W&B run was opened; wandb-core appends after these.

        A later query may return more, since the wandb-core of a killed mirror may still send lines.
        """
        return int(self._wandb.starting_step)

    def send(self, lines: Iterable[Line]) -> None:
        """Send lines; their numbers are the steps of W&B's history."""
        for line in lines:
            self._wandb.log(wandb_values(line), step=line.number, commit=True)  # without `commit` wandb waits for the next line

    def summary(self, values: Mapping[str, Any]) -> None:
        self._wandb.summary.update(dict(values))

    def note(self, text: str) -> None:
        self._wandb.notes = text

    def file(self, path: Path) -> None:
        """Upload a file from the run's wandb/ folder."""
        self._wandb.save(str(path), base_path=str(path.parent), policy="now")

    def alert(self, title: str, text: str, *, serious: bool) -> None:
        """Send an alert to the owner of the run."""
        self._wandb.alert(title, text, level="ERROR" if serious else "INFO", wait_duration=0)

    def artifact(self, name: str, kind: str, uri: str, metadata: Mapping[str, Any], aliases: list[str], *, used: bool) -> None:
        """Declare an input (`used`) or output of the run as an artifact by reference, without an upload."""
        import wandb

        artifact = wandb.Artifact(name, type=kind, metadata=dict(metadata))
        artifact.add_reference(uri, name="reference", checksum=False)
        if not used:
            self._wandb.log_artifact(artifact, aliases=aliases)
            return
        with suppress(wandb.errors.Error, ValueError, TypeError):  # wandb raises these offline
            self._wandb.use_artifact(artifact)

    def table(self, table: ReadableTable) -> None:
        """Show a table, replacing the previous one with this name."""
        import wandb

        data = wandb.Table(columns=table.columns, data=table.rows, allow_mixed_types=True)
        self._wandb.summary[f"tables/{table.name}"] = data  # not in the history, whose lines are those of the feed

    def picture(self, path: Path) -> None:
        """Show a picture, replacing the previous one with this name."""
        import wandb

        self._wandb.summary[f"pictures/{path.stem}"] = wandb.Image(str(path), caption=path.stem)

    def upload(self, name: str, kind: str, folder: Path, metadata: Mapping[str, Any], aliases: list[str]) -> None:
        """Upload a folder as an artifact, from a copy, so that the folder may be deleted meanwhile. Raises OSError."""
        import wandb

        artifact = wandb.Artifact(name, type=kind, metadata=dict(metadata))
        artifact.add_dir(str(folder), policy="mutable")
        self._wandb.log_artifact(artifact, aliases=aliases)

    def finish(self, exit_code: int, *, preempting: bool) -> None:
        """Close the W&B run. `preempting`: the run goes on, and must not be shown as crashed."""
        if preempting:
            self._wandb.mark_preempting()
        self._wandb.finish(exit_code=exit_code)


def wandb_values(line: Line) -> dict[str, Any]:
    """Return a line's content for W&B's history. Steps are metrics, since W&B's own step cannot decrease after a resume."""
    return {**_shown(line), "_timestamp": line.values["time"]}  # the original time instead of the current one


def _shown(line: Line) -> dict[str, Any]:
    values = line.values
    if line.again:  # keep the first metrics of a step, as W&B does; the line keeps its number in the history
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
            histograms = {f"layers/{name}": _histogram(counts, values["edges"]) for name, counts in values["counts"].items()}
            return {**histograms, "train/step": line.step}
        case Kind.NODES:
            outliers = {
                f"node-{node}/{key}": value for node, of_node in values["outliers"].items() for key, value in of_node.items()
            }
            over_nodes = {f"{key}/{name}": value for name in ("min", "mean", "max") for key, value in values[name].items()}
            summary = {f"system/{key}": value for key, value in {**over_nodes, **outliers, "nodes": values["nodes"]}.items()}
            return {**summary, "system/time": values["time"]}
    node = values.get("node", 0)
    samples = {f"system/node-{node}/{key}": value for key, value in values.items() if key not in _NO_SAMPLES}
    return {**samples, "system/time": values["time"]}


def _histogram(counts: list[int], edges: list[float]) -> Any:
    import wandb

    return wandb.Histogram(np_histogram=(counts, edges))


def project_of(run: RunDir) -> tuple[str, str | None]:
    """Return the W&B project and entity of a run; the entity is None for W&B's default."""
    settings = (run.record.get("config") or {}).get("wandb") or {}
    project = settings.get("project") or os.environ.get("WANDB_PROJECT") or "ropewalk"
    return str(project), settings.get("entity") or os.environ.get("WANDB_ENTITY") or None


def _arguments(run: RunDir, attempt: int, *, offline: bool, beside: bool) -> dict[str, Any]:
    """Return the arguments of `wandb.init`: the same W&B run for all attempts, with configuration and code.

    `beside`: this process runs on a machine of the run, with the run's packages.
    """
    import wandb

    record, details = run.record, run.attempt_details(attempt)
    config = dict(record.get("config") or {})
    settings = config.get("wandb") or {}
    project, entity = project_of(run)
    details_of_run = {
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
        "group": settings.get("group")
        or view_class(str(record["job"]))(run).wandb_group()
        or config.get("name")
        or record["job"],
        "job_type": settings.get("job_type") or record["job"],
        "tags": [str(record.get("cluster", "local")), *settings.get("tags", ())],
        "resume": "allow",
        "reinit": "create_new",  # a relay has many open runs in one process
        "config": {**config, **details_of_run},
        "settings": wandb.Settings(
            **_live(),
            console="off",
            save_code=False,
            quiet=True,
            init_timeout=30,
            x_disable_stats=True,
            x_disable_meta=True,
            x_save_requirements=beside and attempt == 1,  # slow
            git_commit=(record.get("code") or {}).get("commit"),
            disable_git=True,  # wandb would use the checkout of this process's current directory
        ),
    }


def _live() -> dict[str, float]:
    """Return the transmission interval unless the environment sets one; wandb-core's default is 15 seconds."""
    return {} if _INTERVAL in os.environ else {"x_file_stream_transmit_interval": TRANSMIT_SECONDS}


def notes(run: RunDir) -> str | None:
    """Return the configured notes followed by the outcomes of attempts, or None."""
    configured = ((run.record.get("config") or {}).get("wandb") or {}).get("notes")
    outcomes = [(attempt, run.outcome(attempt)) for attempt in run.attempts()]
    lines = [f"attempt {attempt}: {end.state.value}, {end.cause}" for attempt, end in outcomes if end is not None]
    return "\n".join([*([configured] if configured else []), *lines[-MOST_ATTEMPTS:]]) or None

"""Reproduction of a run: the same job once more, and what differs between the two.

    reproduce(RUN) ──submit──▶ NEW, whose record names RUN       compare_runs(RUN, NEW): circumstances and figures that differ

The copy of RUN's code is used if RUN has one and it still exists; else the code as it is now, which is a difference.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import CODE_FOLDER, RunDir
from ropewalk.jobs.registry import config_of, find_job
from ropewalk.jobs.results.metrics import curves
from ropewalk.jobs.runs.models.inputs import READS_DATA, paths_in
from ropewalk.jobs.runs.submit.records import wanted_project
from ropewalk.jobs.runs.submit.submit import root_of_runs, submit_many

REPRODUCES = "reproduces"  # key of the record of a run that was made here: the id of the run before
MASKED = "***"
NOT_COMPARED = ("name", "resources")  # keys: the run's own name; resources are compared on their own
MEASURED = re.compile(r"^(system|goodput|ranks)/|(?<![a-z])(seconds?|time|mfu|memory)(?![a-z])")  # metrics that no two runs share


class Difference(NamedTuple):
    """A circumstance that is not the same in both runs, as texts."""

    what: str
    before: str
    now: str


class Figure(NamedTuple):
    """A metric of two runs over the steps that both have."""

    metric: str
    steps: int  # number of steps that both have
    first: int | None  # the first step with another value; None: all are equal
    before: float | None  # value of the first run at that step
    now: float | None
    largest: float  # largest difference, relative to the larger of two values


class Reproduction(NamedTuple):
    """Differences between a run and a second one of the same job."""

    before: str
    now: str
    differences: list[Difference]
    not_compared: list[str]  # circumstances of which nothing was kept
    figures: list[Figure]

    @property
    def identical(self) -> bool:
        """True if there are figures of both runs, and all are equal bit for bit."""
        return bool(self.figures) and all(figure.first is None for figure in self.figures)

    def plain(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return {
            "before": self.before,
            "now": self.now,
            "identical": self.identical,
            "differences": [each._asdict() for each in self.differences],
            "not_compared": self.not_compared,
            "figures": [each._asdict() for each in self.figures],
        }


def reproduce(run: RunDir, overrides: Sequence[str] = (), command: Sequence[str] = ()) -> RunDir:
    """Submit the job of a run once more, with its configuration and, where a copy exists, its code. Raises RopewalkError."""
    record, job, cluster_name = run.record, str(run.record["job"]), str(run.record.get("cluster") or "local")
    config = load_config(config_of(find_job(job)), dict(record["config"]), overrides)
    if masked := next(_masked(config.model_dump(mode="json")), None):
        raise ConfigError(f"{masked}: its value was a secret and is not in run.yaml; add {masked}=VALUE")
    if config.name == record["config"].get("name"):  # none was given
        config = config.model_copy(update={"name": f"{config.name or job}-again"})
    root = root_of_runs([config], cluster_name)
    return submit_many(job, [config], cluster_name, command=command, extra={REPRODUCES: run.id, **_copies(run, root)})[0]


def _masked(value: Any, key: str = "") -> Iterator[str]:
    """Yield the dotted keys whose value is masked."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _masked(part, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for part in value:
            yield from _masked(part, key)
    elif isinstance(value, str) and MASKED in value:
        yield key


def _copies(run: RunDir, root: Path) -> dict[str, Any]:
    """Return the part of a run's record that describes its code, as far as the copies exist under this root."""
    records = {key: run.record.get(key) or {} for key in ("code", "project")}
    there = {key: (root / CODE_FOLDER / str(each["snapshot"])).is_dir() for key, each in records.items() if each.get("snapshot")}
    return {key: records[key] for key, exists in there.items() if exists}


def compare_runs(before: RunDir, now: RunDir) -> Reproduction:
    """Compare the circumstances and the figures of two runs."""
    differences = [*_differences(before, now), *_rewritten(before)]
    not_compared = [] if _code_is_kept(before) and _code_is_kept(now) else ["your code, which was run in place and not copied"]
    return Reproduction(before.id, now.id, differences, not_compared, list(_figures(before, now)))


def _code_is_kept(run: RunDir) -> bool:
    """Return True if the run has a copy of the user's code, or needs none."""
    job = str(run.record["job"])
    return "project" in run.record or not wanted_project(job, load_config(config_of(find_job(job)), dict(run.record["config"])))


def _differences(before: RunDir, now: RunDir) -> Iterator[Difference]:
    for prefix, (old, new) in (
        ("", _parts(before, now, "versions")),
        ("resources.", (before.resources().model_dump(mode="json"), now.resources().model_dump(mode="json"))),
        ("", _parts(before, now, "config")),
    ):
        for key in sorted({*old, *new} - set(NOT_COMPARED)):
            yield from _differs(f"{prefix}{key}", old.get(key), new.get(key))
    for what, key in (("code", "code"), ("your code", "project")):
        yield from _differs(what, *map(_code, _parts(before, now, key)))
    yield from _differs("packages", *(part.get("hash") for part in _parts(before, now, "packages")))
    yield from _differs("cluster", before.record.get("cluster"), now.record.get("cluster"))


def _parts(before: RunDir, now: RunDir, key: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    return before.record.get(key) or {}, now.record.get(key) or {}


def _differs(what: str, before: Any, now: Any) -> Iterator[Difference]:
    if before != now:
        yield Difference(what, "none" if before is None else str(before), "none" if now is None else str(now))


def _code(record: Mapping[str, Any] | None) -> str | None:
    """Return what identifies code: its copy, else its commit and whether files were changed."""
    if not record:
        return None
    if record.get("snapshot"):
        return f"copy {str(record['snapshot'])[:12]}"
    changed = " with uncommitted changes" if record.get("dirty") else ""
    return f"commit {str(record['commit'])[:12]}{changed}" if record.get("commit") else None


def _rewritten(before: RunDir) -> Iterator[Difference]:
    """Yield the data on this machine that were written after a run had been submitted."""
    created = float(before.record.get("created") or 0)
    for path in (path for key in READS_DATA for path in paths_in(before.record["config"].get(key))):
        file = Path(path) / "manifest.json" if Path(path).is_dir() else Path(path)
        if file.is_file() and file.stat().st_mtime > created:
            yield Difference(f"data {path}", "as it was when the run was submitted", "written again since then")


def _figures(before: RunDir, now: RunDir) -> Iterator[Figure]:
    """Yield the metrics that both runs have, those that differ first."""
    old, new = curves(before), curves(now)
    figures = []
    for metric in sorted(set(old) & set(new)):
        values, again = (dict(zip(*curve[metric], strict=True)) for curve in (old, new))
        steps = sorted(set(values) & set(again))
        if MEASURED.search(metric) or not steps:
            continue
        first = next((step for step in steps if values[step] != again[step]), None)
        scale = [abs(values[step] - again[step]) / (max(abs(values[step]), abs(again[step])) or 1.0) for step in steps]
        before_value, now_value = (None, None) if first is None else (values[first], again[first])
        figures.append(Figure(metric, len(steps), first, before_value, now_value, max(scale)))
    yield from sorted(figures, key=lambda figure: figure.first is None)

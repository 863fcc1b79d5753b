"""The place that a run moves to: checks before it stops, and its next attempt."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ropewalk.cluster.backends.profiles import load_backend
from ropewalk.cluster.backends.recovery import has_agents
from ropewalk.cluster.config import JobConfig, Packages, Resources
from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.errors import AlreadyRunningError, ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import locked
from ropewalk.cluster.run.moves import MOVED_FROM, MOVING_TO
from ropewalk.cluster.run.names import ARRIVING_FOLDER
from ropewalk.cluster.run.origin import hang_up_deferred
from ropewalk.cluster.run.siblings import SIBLINGS
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.registry import config_of, find_job
from ropewalk.jobs.runs.move.files import Files
from ropewalk.jobs.runs.show.status import settle
from ropewalk.jobs.runs.submit.dry_run import dry_run_directory
from ropewalk.jobs.runs.submit.inputs import Inputs
from ropewalk.jobs.runs.submit.provenance import mask_secrets
from ropewalk.jobs.runs.submit.records import make_record
from ropewalk.jobs.runs.submit.resume import refuse_fixed
from ropewalk.jobs.runs.submit.submit import check_inputs, root_of_runs, start_with_needed

NOT_STARTED = frozenset({RunState.UNKNOWN, RunState.FAILED})


class Target:
    """A cluster to which a run moves."""

    def __init__(self, cluster: str, run: str) -> None:
        self.cluster, self.backend = cluster, load_backend(cluster)
        self.root = root_of_runs([JobConfig()], cluster).absolute()
        self.run, self.files = RunDir(self.root / run), Files(self.backend, self.root, run)

    def check(self, described: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
        """Check that a run can continue here, and return the changes of its record, and its resources. Raises RopewalkError."""
        backend, job = self.backend, described["job"]
        refuse_fixed(job, [override for override in overrides if not override.startswith("resources.")])
        moving = load_config(config_of(find_job(job)), described["config"], overrides)
        inputs = Inputs(backend, self.root)
        config, fetched = inputs.pin(moving)
        backend.check_access()
        self._compare(dict(zip(_inputs(moving), _inputs(config), strict=True)), described["inputs"])
        if described["packages"]:
            backend.packages(Packages(path=str(self.root)))  # it comes along; the cluster must be able to unpack one
        backend.check_secrets(described["secrets"])
        check_inputs(backend, [config], inputs.path_here)
        planned = dry_run_directory(config, make_record(job, config, self.cluster, {"code": {}}), self.root)
        backend.check_feasible(planned, config.resources)
        inputs.fetch()
        values = {key: value for key, value in mask_secrets(config.model_dump(mode="json")).items() if key != "resources"}
        changes = {"config": values, "cluster": self.cluster, "mounts": dict(backend.mounts)}
        changes |= {"fetched": [item._asdict() for item in fetched]} if fetched else {}
        return {"changes": changes, "resources": config.resources.model_dump(mode="json")}

    def _compare(self, paths: Mapping[str, str], inputs: Sequence[Mapping[str, Any]]) -> None:
        """Raise ConfigError, with the remedy, for an input that is missing here, or has another content.

        `paths`: the path here of each location.
        """
        compared = [each for each in inputs if "://" not in paths.get(each["location"], "://")]
        prints = self.files.fingerprints([paths[each["location"]] for each in compared])
        for each in compared:
            location, path = each["location"], paths[each["location"]]
            what = f"{each['key']}: {location}{f' ({path})' if path != location else ''} on cluster {self.cluster!r}"
            if prints[path] is None:
                named = "copy it there" if path != location else "give it a name in both profiles: mounts: {NAME: /path}"
                raise ConfigError(f"{what}: no such file or directory; data are not copied with a run: {named}")
            if prints[path] != each["fingerprint"]:
                raise ConfigError(f"{what}: is not what the run has read on its cluster; copy the same version there")

    def arrive(self, left: Mapping[str, Any], checked: Mapping[str, Any], code: Mapping[str, Any], source: str) -> dict[str, Any]:
        """Put what has arrived in its place, and start the run's next attempt, once. Raises RopewalkError.

        `left`: the answer of the source's `leave`; `checked`: that of `check`; `code`: changes of the record for its copied code.
        """
        backend, attempt = self.backend, left["attempt"]
        (self.root / ARRIVING_FOLDER).mkdir(parents=True, exist_ok=True)
        with hang_up_deferred(), locked(self.root / ARRIVING_FOLDER / f"{self.run.id}.lock"):
            if not self.files.ask("missing", attempt=attempt, contents=[])["arrived"]:
                change = {"attempt": attempt + 1, MOVED_FROM: source, SIBLINGS: None, **checked["changes"], **code}
                self.files.ask("put", contents=left["contents"], changes=[*left["changes"], change])
            backend.sync(self.run)
            run = RunDir(self.run.path)
            if run.attempts()[-1] <= attempt or (not has_agents(run) and settle(run).state in NOT_STARTED):
                for request in ("cancel", "nodes", MOVING_TO):
                    run.requests.put(request, None)
                with suppress(AlreadyRunningError):
                    start_with_needed(backend, run, Resources.model_validate(checked["resources"]), ())
                run.event("moved_here", source=source)
        return {"run": run.id, "attempt": run.attempts()[-1], "directory": str(run.path)}


def _inputs(config: JobConfig) -> list[str]:
    """Return the values of the keys that name inputs, in a fixed order."""
    values: list[str] = []

    def note(_key: str, value: str, _need: str) -> str:
        values.append(value)
        return value

    config.with_inputs(note)
    return values

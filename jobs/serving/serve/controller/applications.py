"""Ray Serve: one application a version, whose replicas each start an engine; what is seen of them.

Applications outlive the process that started them: a controller that starts again finds them running.
"""

import logging
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ropewalk.cluster.fresh_reads import list_afresh
from ropewalk.cluster.run.files import read_json
from ropewalk.jobs.serving.serve.config import ServeConfig
from ropewalk.jobs.serving.serve.replica import Replica, ReplicaSpec, ReplicaState

log = logging.getLogger(__name__)

DEPLOYMENT = "replica"
HEALTH_SECONDS = 2.0
SCALE_LOOK_SECONDS = 1.0
NAMESPACE = "serve"  # Ray Serve's own
LAST_WORDS = re.compile(r"^[A-Za-z_.]*(?:Error|Exception)\b[^\n]*", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What is seen of one application."""

    replicas: tuple[Mapping[str, Any], ...] = ()  # the records of those that serve
    failed: str = ""  # why none does, and none will
    waits: str = ""  # what replicas wait for
    draining: tuple[str, ...] = field(default=())  # ids of those that finish what they have begun


class Applications:
    """The applications of one serving run."""

    def __init__(self, config: ServeConfig, folder: Path, load_file: Path) -> None:
        self.config, self.folder, self.load_file = config, folder, load_file

    def connect(self) -> None:
        """Join the run's Ray, and start Ray Serve there unless it runs; its HTTP proxy stays off."""
        import ray
        from ray import serve

        ray.init(address=os.environ["RAY_ADDRESS"], namespace=NAMESPACE, logging_level=logging.WARNING)
        serve.start(proxy_location="Disabled")

    def running(self) -> dict[str, Any]:
        """Ray Serve's word on each application that there is, by name."""
        from ray import serve

        return {name: found for name, found in serve.status().applications.items() if found.status != "DELETING"}

    def deploy(self, spec: ReplicaSpec) -> None:
        """Start an application, or find it started; returns at once."""
        from ray import serve

        os.makedirs(spec.folder, exist_ok=True)
        target = serve.RunTarget(target=self._deployment(spec.version).bind(spec), name=spec.app, route_prefix=None)
        serve.run_many([target], wait_for_applications_running=False)

    def _deployment(self, version: str) -> Any:
        from ray import serve

        config = self.config
        actor: dict[str, Any] = {"num_cpus": config.cpus or 0, "num_gpus": config.gpus}
        return serve.deployment(
            name=DEPLOYMENT,
            ray_actor_options=actor,
            max_ongoing_requests=1000,  # none come: requests go to the engine itself
            health_check_period_s=HEALTH_SECONDS,
            health_check_timeout_s=30,
            graceful_shutdown_timeout_s=config.update.drain_seconds + 30,
            graceful_shutdown_wait_loop_s=0.1,
            **self._scale(version),
        )(Replica)

    def _scale(self, version: str) -> dict[str, Any]:
        from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

        replicas, scale = self.config.replicas, self.config.scale
        if not replicas.scales:
            return {"num_replicas": replicas.least}
        policy = AutoscalingPolicy(
            policy_function="ropewalk.jobs.serving.serve.scaling:LoadPolicy",
            policy_kwargs={
                **{"load_file": str(self.load_file), "version": version},
                **{"slots": self.config.slots, "busy": scale.busy},
            },
        )
        return {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=replicas.least,
                max_replicas=replicas.most,
                upscale_delay_s=scale.up_seconds,
                downscale_delay_s=scale.down_seconds,
                metrics_interval_s=SCALE_LOOK_SECONDS,
                policy=policy,
            )
        }

    def delete(self, app: str) -> None:
        """Take an application away; its replicas finish what they have begun. Returns at once."""
        from ray import serve

        log.info("application %s goes", app)
        serve.delete(app, _blocking=False)

    def look(self, apps: Collection[str], running: Mapping[str, Any]) -> dict[str, Found]:
        """What is seen of these applications; `running` is Ray Serve's word on those that there are."""
        import ray

        records = {app: self._records(app) for app in apps}
        actors = {each["name"] for each in ray.util.list_named_actors(all_namespaces=True)}  # after it: who wrote is among them
        return {app: self._found(records[app], running.get(app), actors) for app in apps}

    def _found(self, records: list[dict[str, Any]], status: Any, actors: Collection[str]) -> Found:
        alive = [record for record in records if record["actor"] in actors]
        serving = tuple(record for record in alive if record["state"] == ReplicaState.SERVING)
        draining = tuple(str(record["id"]) for record in alive if record["state"] == ReplicaState.DRAINING)
        failed = ""
        if not serving:
            failed = next((str(record["cause"]) for record in records if record["state"] == ReplicaState.FAILED), "")
            failed = failed or (_last_words(status) if status is not None and status.status == "DEPLOY_FAILED" else "")
        return Found(replicas=serving, draining=draining, failed=failed, waits=_waits(status))

    def _records(self, app: str) -> list[dict[str, Any]]:
        folder, found = self.folder / app, []
        for name in sorted(list_afresh(folder)):
            if name.endswith(".json") and not name.startswith("."):
                try:
                    record = read_json(folder / name)
                except ValueError:
                    continue
                if record:
                    found.append(record)
        return found

    def forget(self, app: str) -> None:
        """Remove what replicas of an application have written: it is gone."""
        shutil.rmtree(self.folder / app, ignore_errors=True)


def _last_words(status: Any) -> str:
    """The error out of Ray Serve's message, which holds whole tracebacks."""
    told = " ".join(str(each.message) for each in status.deployments.values()) or str(status.message)
    errors = LAST_WORDS.findall(told)
    return str(errors[-1] if errors else told)[:500]


def _waits(status: Any) -> str:
    """Why replicas are not there yet, where Ray Serve knows."""
    if status is None:
        return ""
    return " ".join(str(each.message) for each in status.deployments.values() if each.message)[:300]

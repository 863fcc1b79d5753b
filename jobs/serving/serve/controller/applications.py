"""Ray Serve applications of a serving run: one per version, whose replicas each start an engine.

Applications outlive the process that started them: a restarted controller finds them running.
"""

import logging
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
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
NAMESPACE = "serve"  # of Ray Serve
SERVE_CONTROLLER = "SERVE_CONTROLLER_ACTOR"  # name of Ray Serve's own actor
ERROR_LINE = re.compile(r"^[A-Za-z_.]*(?:Error|Exception)\b[^\n]*", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class ApplicationStatus:
    """Observed state of an application."""

    replicas: tuple[Mapping[str, Any], ...] = ()  # records of serving replicas
    failed: str = ""  # permanent error, if no replica serves
    given_up: bool = False  # Ray Serve starts no more replicas, and none serves
    waits: str = ""  # reason for missing replicas
    unnoticed: int = 0  # dead replicas that Ray Serve takes for running


class Applications:
    """The applications of one serving run."""

    def __init__(self, config: ServeConfig, folder: Path, load_file: Path) -> None:
        self.config, self.folder, self.load_file = config, folder, load_file

    def connect(self) -> None:
        """Connect to the run's Ray."""
        import ray

        ray.init(address=os.environ["RAY_ADDRESS"], namespace=NAMESPACE, logging_level=logging.WARNING)

    def start_serve(self) -> None:
        """Start Ray Serve without its HTTP proxy, or find it running."""
        from ray import serve

        serve.start(proxy_location="Disabled")

    def running(self) -> dict[str, Any]:
        """Return the status of each application according to Ray Serve, by name."""
        from ray import serve

        return {name: status for name, status in serve.status().applications.items() if status.status != "DELETING"}

    def deploy(self, spec: ReplicaSpec) -> None:
        """Start an application, or find it running; does not wait."""
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
            max_ongoing_requests=1000,  # irrelevant: requests go directly to the engine
            health_check_period_s=HEALTH_SECONDS,
            health_check_timeout_s=30,
            graceful_shutdown_timeout_s=config.update.drain_seconds + 30,
            graceful_shutdown_wait_loop_s=0.1,
            **self._scale(version),
        )(Replica)

    def _scale(self, version: str) -> dict[str, Any]:
        from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

        replicas, scale = self.config.replicas, self.config.scale
        if replicas.least == replicas.most:
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
        """Remove an application; its replicas finish their requests. Does not wait."""
        from ray import serve

        log.info("deleting application %s", app)
        serve.delete(app, _blocking=False)

    def restart_serve(self) -> None:
        """Restart Ray Serve's controller, which keeps the applications and looks for their replicas anew. Does not wait."""
        import ray

        ray.kill(ray.get_actor(SERVE_CONTROLLER, namespace=NAMESPACE), no_restart=False)

    def observe(self, apps: Collection[str], running: Mapping[str, Any]) -> dict[str, ApplicationStatus]:
        """Return the state of these applications; `running` is Ray Serve's status of the existing ones."""
        import ray

        records = {app: self._records(app) for app in apps}
        # listed after the records are read, so that the actor of every live record is included
        actors = {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}
        return {app: self._status(app, records[app], running.get(app), actors) for app in apps}

    def _status(self, app: str, records: list[dict[str, Any]], status: Any, actors: Collection[str]) -> ApplicationStatus:
        alive = [record for record in records if record["actor"] in actors]
        serving = tuple(record for record in alive if record["state"] == ReplicaState.SERVING)
        failed, given_up = "", not serving and status is not None and status.status == "DEPLOY_FAILED"
        if not serving:
            failed = next((str(record["cause"]) for record in records if record["state"] == ReplicaState.FAILED), "")
            failed = failed or (_error_line(status) if given_up else "")
        living = sum(actor.startswith(f"SERVE_REPLICA::{app}#") for actor in actors)
        unnoticed = max(0, _num_running(status) - living)
        return ApplicationStatus(replicas=serving, failed=failed, given_up=given_up, waits=_waits(status), unnoticed=unnoticed)

    def _records(self, app: str) -> list[dict[str, Any]]:
        folder, records = self.folder / app, []
        for name in sorted(list_afresh(folder)):
            if name.endswith(".json") and not name.startswith("."):
                try:
                    record = read_json(folder / name)
                except ValueError:
                    continue
                if record:
                    records.append(record)
        return records


def _error_line(status: Any) -> str:
    """Extract the error from Ray Serve's message, which contains whole tracebacks."""
    message = " ".join(str(deployment.message) for deployment in status.deployments.values()) or str(status.message)
    errors = ERROR_LINE.findall(message)
    return str(errors[-1] if errors else message)[:500]


def _num_running(status: Any) -> int:
    """Return the number of replicas that Ray Serve takes for running."""
    if status is None:
        return 0
    states = (deployment.replica_states for deployment in status.deployments.values())
    return sum(count for counts in states for state, count in counts.items() if state == "RUNNING")


def _waits(status: Any) -> str:
    """Return the reason for missing replicas, if Ray Serve knows one."""
    if status is None:
        return ""
    return " ".join(str(deployment.message) for deployment in status.deployments.values() if deployment.message)[:300]

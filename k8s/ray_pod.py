"""Ray in this pod: started as KubeRay's other pods expect it, watched, and ended with all that it started."""

import logging
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from cluster.config import Resources
from cluster.engines.ray import START_SECONDS, head_options, ray_command, short_scratch, stop_ray, tail
from cluster.process.scratch import remove_scratch
from cluster.process.signals import deaf_children
from cluster.run.directory import RunDir
from k8s.rayjob import GCS_PORT, RAYLET_PORT

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.1
TOKEN_VARIABLE = "RAY_AUTH_TOKEN"  # noqa: S105 - its name; KubeRay makes one for each cluster


class RayStartError(RuntimeError):
    """Ray did not start; its own last words."""


class PodRay:
    """One Ray node, as long as it lives."""

    def __init__(self, process: subprocess.Popen[bytes], scratch: Path) -> None:
        self._process, self._scratch = process, scratch

    @classmethod
    def start(cls, address: str, resources: Resources, head: str | None, stopped: Callable[[], bool]) -> "PodRay | None":
        """Start Ray at this pod's address, and join a head where one is given; None: it is not to start any more.

        Raises RayStartError.
        """
        scratch = short_scratch()
        command = ray_command(address, resources.cpus or resources.local_world_size, resources.gpus)
        command += [f"--temp-dir={scratch}", f"--node-manager-port={RAYLET_PORT}"]
        command += [f"--address={head}"] if head else head_options(address, GCS_PORT)
        said = scratch / "start.log"
        with said.open("ab") as stream, deaf_children():
            process = subprocess.Popen(
                command, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, env=_environment(), start_new_session=True
            )
        ray, deadline = cls(process, scratch), time.monotonic() + START_SECONDS
        while "Ray runtime started" not in said.read_text(errors="replace"):
            if stopped():
                ray.end()
                return None
            if not ray.alive or time.monotonic() > deadline:
                words = tail(said)
                ray.end()
                raise RayStartError(f"Ray did not start at {address}: {words}")
            time.sleep(LOOK_SECONDS)
        log.info("Ray has started, %s", f"and joined {head}" if head else "as the head")
        return ray

    @property
    def alive(self) -> bool:
        """Whether it runs; Ray ends itself when its head is gone."""
        return self._process.poll() is None

    def end(self) -> None:
        """Nothing of it stays."""
        stop_ray(self._process, self._scratch)
        remove_scratch(self._scratch)


def _environment() -> dict[str, str]:
    """The daemons' own: RAY_ADDRESS, which KubeRay sets, would have a head join itself."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


def resources_of(run: RunDir) -> Resources:
    """What each pod of the run has."""
    attempts = run.attempts()
    details = run.attempt_details(attempts[-1]).get("resources") if attempts else None
    return Resources.model_validate(details or run.record["resources"])

"""What the other pods of a RayJob run: Ray, joined to its head, and to the next head where that one is lost.

Usage: python -m k8s.ray_worker RUN_DIR
"""

import argparse
import logging
import os
import socket
import sys
import time
from pathlib import Path

from cluster.engines.entry import configure_logging
from cluster.errors import EXIT_REQUEUE
from cluster.process.signals import Flag, hear_stops
from cluster.run.directory import RunDir
from k8s.api.in_cluster import Inside
from k8s.ray_burial import Burial
from k8s.ray_pod import PodRay, RayStartError, resources_of
from k8s.rayjob import GCS_PORT
from k8s.runtime.leader_terms import given_up, leaving, newest

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
NOTICE_SECONDS = 5.0  # in which the head has heard too that all have to go, if it is not this pod alone


class Worker:
    """This pod."""

    def __init__(self, run: RunDir, address: str, head: str) -> None:
        self.run, self.address, self.head = run, address, head
        self.asked_to_go = Flag()
        hear_stops(self.asked_to_go.set)

    def live(self) -> None:
        """Until this pod has to go."""
        while not self.asked_to_go.is_set():
            there = self._head_address()
            ray = self._join(there) if there else None
            if ray is None:
                self.asked_to_go.wait(LOOK_SECONDS)
                continue
            try:
                while ray.alive and not self.asked_to_go.wait(LOOK_SECONDS):
                    if (now := self._head_address()) and now != there:  # Ray itself would wait a minute for the old one
                        log.info("there is a new head: %s", now)
                        break
                if self.asked_to_go.is_set():
                    self._stay_for_the_head()
            finally:
                ray.end()

    def _join(self, head: str) -> PodRay | None:
        try:
            return PodRay.start(self.address, resources_of(self.run), f"{head}:{GCS_PORT}", self.asked_to_go.is_set)
        except RayStartError as error:  # the head may be on its way out, and the next one welcome this pod
            log.warning("%s", error)
            return None

    def _head_address(self) -> str:
        """Where the head's service points to; empty: nowhere at present."""
        try:
            return str(socket.getaddrinfo(self.head, GCS_PORT, type=socket.SOCK_STREAM)[0][4][0])
        except OSError:
            return ""

    def _stay_for_the_head(self) -> None:
        """Where all pods have to go, the run saves first, and what it saves may be in this one."""
        claim = newest(self.run)
        noticed_by = time.monotonic() + NOTICE_SECONDS
        while claim is not None and not given_up(self.run, claim):
            if not leaving(self.run, claim) and time.monotonic() > noticed_by:
                return
            time.sleep(LOOK_SECONDS / 4)


def main() -> None:
    """Be a worker of a RayJob."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    run = RunDir(parser.parse_args().run_dir)
    configure_logging(f"pod {os.environ['POD_NAME']}")
    Burial(Inside(), "head", GCS_PORT).start()
    Worker(run, os.environ["POD_IP"], os.environ["FQ_RAY_IP"]).live()
    sys.exit(EXIT_REQUEUE)


if __name__ == "__main__":
    main()

"""Preloaded by an agent: node 1 of a run has formed the group with the others, and never comes to start its ranks."""

import time
from typing import Any

from ropewalk.cluster.engines.rendezvous import NumberedRendezvous

_form = NumberedRendezvous._form


def _form_and_wait(self: NumberedRendezvous) -> Any:
    info = _form(self)
    while self._node.index == 1 and self._run.record["config"].get("stuck_forming"):
        time.sleep(0.05)
    return info


NumberedRendezvous._form = _form_and_wait  # type: ignore[method-assign]

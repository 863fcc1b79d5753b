"""Services shared by all exchanges of a gateway."""

from dataclasses import dataclass

from ropewalk.jobs.serving.feedback.capture import Capture
from ropewalk.jobs.serving.serve.gateway.exchange.metrics import Metrics
from ropewalk.jobs.serving.serve.gateway.routing.table import Table
from ropewalk.jobs.serving.serve.gateway.settings import GatewaySettings
from ropewalk.jobs.serving.serve.gateway.upstream import Upstreams


@dataclass(frozen=True)
class Context:
    """Settings, routing, and the destinations of finished exchanges."""

    settings: GatewaySettings
    table: Table
    upstreams: Upstreams
    metrics: Metrics
    capture: Capture | None

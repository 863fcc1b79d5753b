"""Services shared by all exchanges of a gateway."""

from dataclasses import dataclass

from ropewalk.jobs.serving.serve.gateway.exchange.archive import Archive
from ropewalk.jobs.serving.serve.gateway.exchange.cache import AnswerCache
from ropewalk.jobs.serving.serve.gateway.exchange.metrics import Metrics
from ropewalk.jobs.serving.serve.gateway.http.upstream import Upstreams
from ropewalk.jobs.serving.serve.gateway.routing.table import Table
from ropewalk.jobs.serving.serve.gateway.settings import GatewaySettings
from ropewalk.jobs.serving.serve.gateway.sockets.journal import Journal


@dataclass(frozen=True)
class Context:
    """Settings, journal, routing, and the destinations of finished exchanges."""

    settings: GatewaySettings
    journal: Journal
    table: Table
    upstreams: Upstreams
    cache: AnswerCache
    metrics: Metrics
    archive: Archive
